"""``quarters``: a picture near its own size, behind its four quarters or alone (Idefics2, Aria)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.fixed import Exact
from vlmc.runtime.images.patches import patchify
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import Array, PreparedImage
from vlmc.schema import Frozen

# A little less than 1, where the last of many patches would come to lie.
_LAST = np.float32(1.0 - 1e-6)

Box = tuple[int, int, int, int]


class Edges(Frozen):
    """No side is longer than ``longest``, unless ``shortest`` is: then no side is shorter."""

    shortest: PositiveInt
    longest: PositiveInt


class Filled(Frozen):
    """The longer side becomes ``longest``, the other no shorter than ``least``.

    The rest of a square of ``longest`` is black; patches without any of the picture are none.
    """

    longest: PositiveInt
    least: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> "Filled":
        if self.least > self.longest:
            raise ValueError(f"no side of {self.least} fits into {self.longest} pixels")
        return self


class Options(Frozen):
    """Constants of ``Idefics2ImageProcessor`` or ``AriaImageProcessor``, and of the tower.

    Attributes:
        patch_size: Of the tower, in pixels.
        tokens: Feature rows of each quarter and of the whole.
        split: Whether there are quarters.
        resize: The new size of each; None: its own.
        resample: The filter.
        on_white: Lay transparent pictures on white.
        values: Levels to floats.
    """

    patch_size: PositiveInt
    tokens: PositiveInt
    split: bool
    resize: Edges | Exact | Filled | None
    resample: Resample
    on_white: bool
    values: Values


def _boxes(height: int, width: int, options: Options) -> list[Box]:
    """Left, upper, right and lower end of every part, row by row, the whole last.

    Mirrors ``Idefics2ImageProcessorPil.split_images``.
    """
    whole = (0, 0, width, height)
    if not options.split:
        return [whole]
    x, y = width // 2, height // 2
    if not x or not y:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is too narrow to be quartered"
        )
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height), whole]


def _target(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size a part gets.

    Mirrors ``get_resize_output_image_size`` of Idefics2's processor, and Aria's ``_preprocess``.
    """
    if options.resize is None:
        return height, width
    if isinstance(options.resize, Exact):
        return options.resize.height, options.resize.width
    if isinstance(options.resize, Filled):
        side, least = options.resize.longest, options.resize.least
        scale = side / max(height, width)
        if width >= height:
            return max(int(height * scale), least), side
        return side, max(int(width * scale), least)
    shortest, longest = options.resize.shortest, options.resize.longest
    ratio = width / height
    if width >= height and width > longest:
        height, width = int(longest / ratio), longest
    elif height > width and height > longest:
        height, width = longest, int(longest * ratio)
    return max(height, shortest), max(width, shortest)


def parts(height: int, width: int, options: Options) -> list[tuple[Box, tuple[int, int]]]:
    """Every part of a picture: its box, and the size (height, width) it gets.

    Raises:
        VlmcError: The picture is too narrow.
    """
    found = []
    for box in _boxes(height, width, options):
        left, upper, right, lower = box
        size = _target(lower - upper, right - left, options)
        pixels.check_target(height, width, *size)
        if min(size) < options.patch_size:
            raise VlmcError(
                f"a picture of {pixels.size_text(height, width)} becomes "
                f"{pixels.size_text(*size)}, less than a patch of {options.patch_size} pixels"
            )
        found.append((box, size))
    return found


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: as many for each part."""
    return len(parts(height, width, options)) * options.tokens


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Pixels equal ``Idefics2ImageProcessorPil`` and ``AriaImageProcessorPil`` bit for bit. Those
    fill the parts of all pictures up to one size, and mask what they added; here are the patches
    that no mask hides, which neither reads the other's filling.

    Returns:
        ``pixel_values`` float32 [P, 3*ps*ps], the patches of the quarters, if any, and of the
        whole, row by row; ``patch_places`` float32 [P, 2], where in its part each begins, as shares
        of height and width; ``tile_patches`` int64 [parts, slots], the patches of each (-1: none).

    Raises:
        VlmcError: The picture is too narrow.
    """
    found = parts(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    side = options.patch_size
    patches, places = [], []
    for box, (height, width) in found:
        part = picture if len(found) == 1 else picture.crop(box)
        if options.resize is not None:
            part = pixels.resized(part, height, width, options.resample)
        rows, columns = _grid(height, width, options)
        levels = _whole_patches(np.asarray(part), rows * side, columns * side)
        patches.append(patchify(levels, side, 1, 1, options.values))
        places.append(_places(rows, columns))
    counts = np.array([len(one) for one in patches])
    slots = np.full((len(counts), int(counts.max())), -1, dtype=np.int64)
    slots[np.arange(slots.shape[1]) < counts[:, None]] = np.arange(counts.sum())
    made = len(found) * options.tokens
    tensors: dict[str, Array] = {
        "pixel_values": np.concatenate(patches),
        "patch_places": np.concatenate(places),
        "tile_patches": slots,
    }
    tiles = (2, 2) if options.split else (0, 0)
    return PreparedImage(tensors, made, (len(found), 1, options.tokens), tiles=tiles)


def _grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of patches of a part: those that are whole, or have any of the picture."""
    side = options.patch_size
    if isinstance(options.resize, Filled):
        most = options.resize.longest // side
        return min(math.ceil(height / side), most), min(math.ceil(width / side), most)
    return height // side, width // side


def _whole_patches(levels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Pixels [H, W, 3] cut to a size, or filled up to it with black."""
    levels = levels[:height, :width]
    below, beside = height - levels.shape[0], width - levels.shape[1]
    return np.pad(levels, ((0, below), (0, beside), (0, 0)))


def _places(rows: int, columns: int) -> NDArray[np.float32]:
    """Mirrors ``Idefics2VisionEmbeddings.forward`` to the rounding, [rows * columns, 2]."""
    shares = [
        np.minimum(np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count)), _LAST)
        for count in (rows, columns)
    ]
    return np.stack(np.meshgrid(*shares, indexing="ij"), axis=-1).reshape(-1, 2)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches``, ``tiles`` and ``slots`` are free."""
    return (
        TensorSpec(
            name="pixel_values", dtype="float32", shape=("patches", 3 * options.patch_size**2)
        ),
        TensorSpec(name="patch_places", dtype="float32", shape=("patches", 2)),
        TensorSpec(name="tile_patches", dtype="int64", shape=("tiles", "slots")),
    )


QUARTERS = Geometry("quarters", Options, prepare, tokens, inputs)
