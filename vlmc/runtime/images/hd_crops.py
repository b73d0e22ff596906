"""``hd_crops``: square crops of a picture as large as they come, then the whole (Phi-4).

transformers has this for torchvision only; pictures are resized as torch does it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.images.torch_resize import resized, strided
from vlmc.runtime.types import Array, PreparedImage
from vlmc.schema import Frozen

# A side that has fewer pixels once it is resized is refused, as there.
_NARROWEST = 10


class Options(Frozen):
    """Constants of ``Phi4MultimodalImageProcessor`` and of the tower.

    Attributes:
        side: Height and width of a crop, in pixels.
        patch_size: Of the tower, in pixels.
        max_tiles: The most crops, the whole picture not counted (``dynamic_hd``).
        resample: The filter that makes the whole picture a crop.
        on_white: Lay transparent pictures on white.
        values: Levels to floats.
    """

    side: PositiveInt
    patch_size: PositiveInt
    max_tiles: Annotated[int, Field(ge=1, le=256)]
    resample: Literal["nearest", "bilinear", "bicubic"]
    on_white: bool
    values: Values

    @model_validator(mode="after")
    def _usable(self) -> "Options":
        if self.patch_size > self.side:
            raise ValueError(f"a patch of {self.patch_size} pixels in a crop of {self.side}")
        if self.max_tiles * self.side**2 > pixels.MAX_PIXELS:
            raise ValueError(f"{self.max_tiles} crops of {self.side} pixels are too many")
        return self

    @property
    def patches(self) -> int:
        """Patches along a side of a crop."""
        return self.side // self.patch_size

    @property
    def rows(self) -> int:
        """Feature rows along a side of a crop: every two patches make one."""
        return -(-self.patches // 2)


@lru_cache(maxsize=8)
def _grids(most: int) -> tuple[tuple[int, int], ...]:
    """Columns and rows of every grid; equal areas stay in the order of the set, as there."""
    found = {
        (columns, rows)
        for count in range(1, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if columns * rows <= most
    }
    return tuple(sorted(found, key=math.prod))


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of crops of a picture.

    Mirrors ``dynamic_preprocess`` and ``find_closest_aspect_ratio``.
    """
    side = options.side
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    if rows * columns <= options.max_tiles:
        return rows, columns
    best, nearest = (1, 1), math.inf
    for columns, rows in _grids(options.max_tiles):
        distance = abs(width / height - columns / rows)
        if distance < nearest:
            best, nearest = (columns, rows), distance
        elif distance == nearest and width * height > 0.5 * side * side * columns * rows:
            best = columns, rows
    return best[1], best[0]


def fitted(height: int, width: int, options: Options) -> tuple[int, int, int, int]:
    """A picture's size (height, width) on its crops, and the rows and columns of those.

    Raises:
        VlmcError: It is too narrow for the model.
    """
    rows, columns = grid(height, width, options)
    high, wide = rows * options.side, columns * options.side
    across, down = wide / width, high / height
    new = (int(height * across), wide) if across < down else (high, int(width * down))
    if min(new) < _NARROWEST:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is too narrow for this model: "
            f"resized, it has {pixels.size_text(*new)}; the least is {_NARROWEST}"
        )
    return *new, rows, columns


def shown_patches(height: int, width: int, options: Options) -> tuple[list[int], list[int]]:
    """Patches that show the picture: down in each row of crops, across in each column.

    Raises:
        VlmcError: As ``fitted``.
    """
    high, wide, rows, columns = fitted(height, width, options)

    def shown(length: int, crops: int) -> list[int]:
        seen = crops * options.patches - (crops * options.side - length) // options.patch_size
        starts = range(0, crops * options.patches, options.patches)
        return [min(max(seen - start, 0), options.patches) for start in starts]

    return shown(high, rows), shown(wide, columns)


def kept_rows(height: int, width: int, options: Options) -> tuple[int, int]:
    """Feature rows of the joined crops that show the picture, down and across."""
    down, across = shown_patches(height, width, options)
    return sum(-(-seen // 2) for seen in down), sum(-(-seen // 2) for seen in across)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture, a mark after each row of either part and one between them."""
    down, across = kept_rows(height, width, options)
    return down * (across + 1) + 1 + options.rows * (options.rows + 1)


def least_tokens(options: Options) -> int:
    """Of the smallest picture: one of its sides always fills its crops."""
    side = options.rows
    return min(side * 2, side + 1) + 1 + side * (side + 1)


def buckets(seen: int, patches: int) -> NDArray[np.int64]:
    """The place in the table of positions, along one side, of so many patches, int64 [seen].

    Mirrors ``Phi4MultimodalVisionEmbeddings.forward`` to the rounding.
    """
    one = np.float32(1.0)
    boundaries = np.arange(1 / patches, 1.0, 1 / patches).astype(np.float32)
    places = np.arange(seen, dtype=np.float32) * (one / np.float32(max(seen, 1)))
    places = np.minimum(places, np.float32(1.0 - 1e-6))
    found: NDArray[np.int64] = np.searchsorted(boundaries, places, side="right").astype(np.int64)
    return found


def places(height: int, width: int, options: Options) -> NDArray[np.int64]:
    """The row of the table of positions for each patch, int64 [crops, patches]; -1: unseen."""
    side = options.patches
    down, across = shown_patches(height, width, options)
    found = np.full((1 + len(down) * len(across), side, side), -1, dtype=np.int64)
    shapes = [(side, side)] + [(tall, wide) for tall in down for wide in across]
    for crop, (tall, wide) in zip(found, shapes, strict=True):
        crop[:tall, :wide] = buckets(tall, side)[:, None] * side + buckets(wide, side)
    return found.reshape(len(found), side * side)


def packing(height: int, width: int, options: Options) -> NDArray[np.int64]:
    """Which feature rows the placeholders of a picture show, int64 [tokens].

    Indices into the features of all crops, one after the other, then the mark that ends a row,
    then the one before the whole picture. Mirrors ``Phi4MultimodalImageEmbedding.forward``: the
    crops joined come first.
    """
    side = options.rows
    _, _, rows, columns = fitted(height, width, options)
    crops = np.arange(rows * columns * side * side).reshape(rows, columns, side, side) + side * side
    down, across = kept_rows(height, width, options)
    joined = crops.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)[:down, :across]
    whole = np.arange(side * side).reshape(side, side)
    end = (1 + rows * columns) * side * side
    parts = [np.pad(part, ((0, 0), (0, 1)), constant_values=end) for part in (joined, whole)]
    return np.concatenate([parts[0].ravel(), [end + 1], parts[1].ravel()]).astype(np.int64)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Returns:
        ``pixel_values`` float32 [crops, 3, side, side], the whole picture first;
        ``patch_places`` int64 [crops, patches]; ``packing`` int64 [tokens]; and ``one_way``
        float32 [1], as ``together`` has it for a prompt of this picture alone.

    Raises:
        VlmcError: The picture is too narrow.
    """
    size = image.height, image.width
    high, wide, rows, columns = fitted(*size, options)
    side = options.side
    canvas = np.full((rows * side, columns * side, 3), 255, dtype=np.uint8)
    picture = np.asarray(pixels.rgb(image, on_white=options.on_white))
    canvas[:high, :wide] = resized(picture, high, wide, "bilinear")
    values = np.empty((1 + rows * columns, 3, side, side), dtype=np.float32)
    for channel, floats in enumerate(pixels.table(options.values)):
        plane = floats[canvas[..., channel]]
        values[0, channel] = strided(plane, rows, columns, options.resample)
        cut = plane.reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
        values[1:, channel] = cut.reshape(-1, side, side)
    found = places(*size, options)
    count = tokens(*size, options)
    tensors: dict[str, Array] = {
        "pixel_values": values,
        "patch_places": found,
        "packing": packing(*size, options),
        "one_way": np.array([(found >= 0).all()], dtype=np.float32),
    }
    return PreparedImage(tensors, count, (1, 1, count))


def together(pictures: Sequence[PreparedImage]) -> list[PreparedImage]:
    """The pictures of one prompt: no patch of any is unseen, or ``one_way`` is 0 for all.

    transformers encodes them in one batch, and has no mask for it where nothing is to be masked.
    """
    alike = np.float32(all(one.tensors["one_way"].all() for one in pictures))
    flag = np.array([alike], dtype=np.float32)
    return [replace(one, tensors={**one.tensors, "one_way": flag}) for one in pictures]


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` and ``image_tokens`` are free."""
    shape = ("tiles", 3, options.side, options.side)
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=shape),
        TensorSpec(name="patch_places", dtype="int64", shape=("tiles", options.patches**2)),
        TensorSpec(name="packing", dtype="int64", shape=("image_tokens",)),
        TensorSpec(name="one_way", dtype="float32", shape=(1,)),
    )


HD_CROPS = Geometry("hd_crops", Options, prepare, tokens, inputs, together=together)
