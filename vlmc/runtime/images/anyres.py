"""``anyres``: a small picture of the whole, and tiles of a larger one (LLaVA-NeXT)."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``LlavaNextImageProcessor`` and of the tower that reads its tiles.

    Attributes:
        side: Height and width of a tile in pixels.
        rows: Feature rows along a side of a tile.
        resolutions: Sizes (height, width) a picture may be tiled at, multiples of ``side``.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
    """

    side: PositiveInt
    rows: PositiveInt
    resolutions: tuple[tuple[PositiveInt, PositiveInt], ...]
    resample: Resample
    on_white: bool
    values: Values

    @model_validator(mode="after")
    def _tiled(self) -> "Options":
        if not self.resolutions:
            raise ValueError("no resolution is given")
        for height, width in self.resolutions:
            if height % self.side or width % self.side:
                raise ValueError(
                    f"{height} x {width} pixels cannot be cut into tiles of {self.side}"
                )
            if height * width > pixels.MAX_PIXELS:
                raise ValueError(f"{height} x {width} pixels are too many")
        return self


def resolution(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) that keeps most of a picture and wastes least.

    Mirrors ``select_best_resolution`` of ``transformers.image_processing_utils``.
    """

    def merit(target: tuple[int, int]) -> tuple[int, int]:
        scale = min(target[1] / width, target[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - target[0] * target[1]

    return max(options.resolutions, key=merit)  # the first of equals


def kept_grid(height: int, width: int, options: Options) -> tuple[int, int, slice, slice]:
    """The grid of a picture's tiles, and the feature rows and columns that show the picture.

    Mirrors ``get_anyres_image_grid_shape`` and ``unpad_image`` of
    ``transformers.models.llava_next``, whose padding may differ from the pixels' by a row.

    Returns:
        Tiles down, tiles across, and slices of the joined features down and across.
    """
    target = resolution(height, width, options)
    down, across = target[0] // options.side, target[1] // options.side
    rows, columns = down * options.rows, across * options.rows
    above = beside = 0
    if width / height > columns / rows:
        above = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        beside = (columns - int(round(width * (rows / height), 7))) // 2
    return down, across, slice(above, rows - above), slice(beside, columns - beside)


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens: the whole picture's, then each kept row's with its line break."""
    _, _, rows, columns = kept_grid(height, width, options)
    kept: int = (rows.stop - rows.start) * (columns.stop - columns.start + 1)
    return options.rows**2 + kept


def least_tokens(options: Options) -> int:
    """Placeholder tokens of the narrowest picture: all that may be unpadded is."""
    sizes = [(h // options.side, w // options.side) for h, w in options.resolutions]
    grids = [(down * options.rows, across * options.rows) for down, across in sizes]
    narrow = [min(h % 2 * (w + 1), h * (w % 2 + 1)) for h, w in grids]
    return options.rows**2 + min(narrow)


def packing(height: int, width: int, options: Options) -> NDArray[np.int64]:
    """Which feature row each placeholder of a picture shows.

    Mirrors ``LlavaNextModel.pack_image_features``: the whole picture first, then the tiles joined,
    unpadded to the picture's shape, with a line break after each row.

    Returns:
        int64 [tokens], indices into the features of all tiles, one tile after the other, and the
        line break's embedding after them.
    """
    down, across, kept_rows, kept_columns = kept_grid(height, width, options)
    side = options.rows
    whole = np.arange(side * side)
    tiles = np.arange(down * across * side * side).reshape(down, across, side, side) + whole.size
    joined = tiles.transpose(0, 2, 1, 3).reshape(down * side, across * side)
    kept = joined[kept_rows, kept_columns]
    breaks = np.full((kept.shape[0], 1), whole.size + tiles.size)
    lines = np.concatenate([kept, breaks], axis=1)
    return np.concatenate([whole, lines.reshape(-1)]).astype(np.int64)


def _padded(image: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    """The picture as large as fits, centered on black of that size.

    Mirrors ``get_patch_output_size`` and ``LlavaNextImageProcessorPil._pad_for_patching``.
    """
    scale_down, scale_across = height / image.height, width / image.width
    if scale_across < scale_down:
        fitted = min(math.ceil(image.height * scale_across), height), width
    else:
        fitted = height, min(math.ceil(image.width * scale_down), width)
    padded = Image.new("RGB", (width, height))
    place = (width - fitted[1]) // 2, (height - fitted[0]) // 2
    padded.paste(pixels.resized(image, *fitted, resample), place)
    return padded


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``LlavaNextImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [tiles, 3, side, side], the whole picture first, and ``packing``
        int64 [tokens].
    """
    height, width, side = image.height, image.width, options.side
    image = pixels.rgb(image, on_white=options.on_white)
    target = resolution(height, width, options)
    large = np.asarray(_padded(image, *target, options.resample))
    down, across = target[0] // side, target[1] // side
    tiles = large.reshape(down, side, across, side, 3).transpose(0, 2, 1, 3, 4)
    whole = np.asarray(pixels.resized(image, side, side, options.resample))
    picture = np.concatenate([whole[None], tiles.reshape(-1, side, side, 3)])
    values = np.empty((len(picture), 3, side, side), dtype=np.float32)
    for channel, levels in enumerate(pixels.table(options.values)):
        values[:, channel] = levels[picture[..., channel]]
    order = packing(height, width, options)
    return PreparedImage({"pixel_values": values, "packing": order}, len(order), (1, 1, len(order)))


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` and ``image_tokens`` are free."""
    shape = ("tiles", 3, options.side, options.side)
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=shape),
        TensorSpec(name="packing", dtype="int64", shape=("image_tokens",)),
    )


ANYRES = Geometry("anyres", Options, prepare, tokens, inputs)
