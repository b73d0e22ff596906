"""``canvas``: a picture on the grid of tiles that fits it best, then the whole (Llama 4)."""

import math
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
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
    """Constants of ``Llama4ImageProcessor``.

    Attributes:
        side: Height and width of a tile, in pixels.
        max_tiles: The most tiles of a grid, the whole picture not counted.
        tokens: Feature rows of the vision program for each tile.
        enlarge: Enlarge pictures to the canvas (``resize_to_max_canvas``).
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats, computed in bfloat16.
    """

    side: PositiveInt
    max_tiles: Annotated[int, Field(ge=1, le=256)]
    tokens: PositiveInt
    enlarge: bool
    resample: Literal["bilinear", "bicubic"]
    on_white: bool
    values: Values


def canvases(most: int) -> list[tuple[int, int]]:
    """Rows and columns of every grid, in the order of ``find_supported_resolutions``."""
    by_shape: dict[float, list[tuple[int, int]]] = {}
    for count in range(most, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                columns = count // rows
                by_shape.setdefault(rows / columns, []).append((rows, columns))
    return [grid for grids in by_shape.values() for grid in grids]


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """The rows and columns of the canvas for a picture.

    Mirrors ``get_best_fit``, in its float32: the least enlargement, or else the least shrinking,
    and of equal ones the smallest canvas.
    """
    grids = canvases(options.max_tiles)
    sizes = np.array(grids, dtype=np.float32) * np.float32(options.side)
    scales = (sizes / np.array([height, width], dtype=np.float32)).min(axis=1)
    enlarging = scales[scales >= 1]
    if len(enlarging):
        chosen = enlarging.max() if options.enlarge else enlarging.min()
    else:
        chosen = scales.max()
    fitting = [one for one, scale in zip(grids, scales, strict=True) if scale == chosen]
    return min(fitting, key=math.prod)


def shrunk(height: int, width: int, rows: int, columns: int, options: Options) -> tuple[int, int]:
    """The size (height, width) of a picture on its canvas, its shape kept.

    Mirrors ``get_max_res_without_distortion``.
    """
    high, wide = rows * options.side, columns * options.side
    if not options.enlarge:
        high = min(max(height, options.side), high)
        wide = min(max(width, options.side), wide)
    across, down = wide / width, high / height
    if across < down:
        return max(min(math.floor(height * across), high), 1), wide
    return high, max(min(math.floor(width * down), wide), 1)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture."""
    rows, columns = grid(height, width, options)
    pixels.check_target(height, width, rows * options.side, columns * options.side)
    return options.tokens * (1 if rows * columns == 1 else rows * columns + 1)


def bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the nearest number of 8 significant bits, ties to the even one."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def table(values: Values) -> NDArray[np.float32]:
    """The float of every level, float32 [3, 256]: ``Llama4ImageProcessor.rescale_and_normalize``.

    Both steps are taken in bfloat16; rescaling alone is not.
    """
    if values.rescale is None or values.mean is None or values.std is None:
        return pixels.table(values)
    levels = bfloat16(np.arange(256, dtype=np.float32) * np.float32(values.rescale))
    mean, std = (
        bfloat16(np.array(given, dtype=np.float32))[:, None] for given in (values.mean, values.std)
    )
    return bfloat16(bfloat16(levels[None] - mean) / std)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals ``Llama4ImageProcessor`` on the resizing of bytes that torchvision has for processors
    with AVX2.

    Returns:
        ``pixel_values`` float32 [T, 3, S, S]: the grid's tiles row by row, then the whole picture.

    Raises:
        VlmcError: The picture would grow beyond all bounds.
    """
    made = tokens(image.height, image.width, options)
    rows, columns = grid(image.height, image.width, options)
    side, tiles = options.side, made // options.tokens
    picture = np.asarray(pixels.rgb(image, on_white=options.on_white))
    high, wide = shrunk(image.height, image.width, rows, columns, options)
    canvas = np.zeros((rows * side, columns * side, 3), dtype=np.uint8)
    canvas[:high, :wide] = resized(picture, high, wide, options.resample)
    levels = np.empty((tiles, side, side, 3), dtype=np.uint8)
    cut = canvas.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    levels[: rows * columns] = cut.reshape(-1, side, side, 3)
    if tiles > 1:
        levels[-1] = resized(picture, side, side, options.resample)
    values = np.empty((tiles, 3, side, side), dtype=np.float32)
    for channel, floats in enumerate(table(options.values)):
        values[:, channel] = floats[levels[..., channel]]
    cuts = (rows, columns) if tiles > 1 else (0, 0)
    return PreparedImage({"pixel_values": values}, made, (1, 1, made), cuts)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` is free."""
    shape = ("tiles", 3, options.side, options.side)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


CANVAS = Geometry("canvas", Options, prepare, tokens, inputs)
