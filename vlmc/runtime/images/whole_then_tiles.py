"""``whole_then_tiles``: the whole picture, then the tiles of a grid it is stretched over (PLM)."""

import math
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field, PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.images.torch_resize import resized
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``PerceptionLMImageProcessor``.

    Attributes:
        side: Height and width of a tile, in pixels.
        max_tiles: The most tiles of a grid, the whole picture not counted; None: no grid at all.
        tokens: Feature rows of the vision program for each tile.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
    """

    side: PositiveInt
    max_tiles: Annotated[int, Field(ge=1, le=256)] | None
    tokens: PositiveInt
    resample: Literal["bilinear", "bicubic"]
    on_white: bool
    values: Values


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """The grid (rows, columns) that a picture is stretched over.

    Mirrors ``_fit_image_to_canvas`` and, where no grid is as large as the picture,
    ``_find_closest_aspect_ratio``.
    """
    by_shape = _by_shape(options.max_tiles or 1)
    best: tuple[int, int] | None = None
    longest = 0.0
    for columns, rows in (one for grids in by_shape.values() for one in grids):
        high, wide = rows * options.side, columns * options.side
        if high < height or wide < width:
            continue
        shorter = _shorter_side(height, width, high, wide)
        # Of grids as good as each other the last.
        if best is None or shorter >= longest:
            best, longest = (columns, rows), shorter
    columns, rows = best or _closest(width / height, by_shape)
    return rows, columns


def _by_shape(most: int) -> dict[float, list[tuple[int, int]]]:
    """Columns and rows of every grid by its shape, in ``_find_supported_aspect_ratios``' order."""
    found: dict[float, list[tuple[int, int]]] = {}
    for count in range(most, 0, -1):
        for columns in range(1, count + 1):
            if count % columns == 0:
                rows = count // columns
                found.setdefault(columns / rows, []).append((columns, rows))
    return found


def _shorter_side(height: int, width: int, high: int, wide: int) -> float:
    """The shorter side of a picture that grows as large as a canvas, its shape kept.

    Mirrors ``_get_image_height_width``, rounded where that is.
    """
    shape = width / height
    factor = min(wide / width, high / height)
    if shape > 1.0:
        return math.floor(factor * width / shape)
    # A square's height is compared, which is not rounded.
    return factor * height if shape == 1.0 else math.floor(factor * height * shape)


def _closest(shape: float, by_shape: dict[float, list[tuple[int, int]]]) -> tuple[int, int]:
    """The largest grid of the shape nearest to a picture's, on its side of the square."""
    if shape >= 1:
        nearest = min((one for one in by_shape if one <= shape), key=lambda one: abs(one - shape))
        return max(by_shape[nearest], key=lambda one: one[0])
    nearest = min(
        (one for one in by_shape if one > shape), key=lambda one: abs(1 / one - 1 / shape)
    )
    return max(by_shape[nearest], key=lambda one: one[1])


def tokens(height: int, width: int, options: Options) -> int:
    """Placeholder tokens of a picture."""
    if options.max_tiles is None:
        return options.tokens
    rows, columns = grid(height, width, options)
    pixels.check_target(height, width, rows * options.side, columns * options.side)
    return (rows * columns + 1) * options.tokens


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals what ``PerceptionLMImageProcessor`` makes with torchvision.

    Returns:
        ``pixel_values`` float32 [T, 3, S, S]: the whole picture, then the grid's tiles row by row.

    Raises:
        VlmcError: The picture would grow beyond all bounds.
    """
    made = tokens(image.height, image.width, options)
    picture, side = np.asarray(pixels.rgb(image, on_white=options.on_white)), options.side
    levels = np.empty((made // options.tokens, side, side, 3), dtype=np.uint8)
    levels[0] = resized(picture, side, side, options.resample)
    if options.max_tiles is not None:
        rows, columns = grid(image.height, image.width, options)
        canvas = resized(picture, rows * side, columns * side, options.resample)
        cut = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        levels[1:] = cut.reshape(-1, side, side, 3)
    values = np.empty((len(levels), 3, side, side), dtype=np.float32)
    for channel, table in enumerate(pixels.table(options.values)):
        values[:, channel] = table[levels[..., channel]]
    return PreparedImage({"pixel_values": values}, made, (1, 1, made))


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` is free."""
    shape = ("tiles", 3, options.side, options.side)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


WHOLE_THEN_TILES = Geometry("whole_then_tiles", Options, prepare, tokens, inputs)
