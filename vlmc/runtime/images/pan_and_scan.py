"""``pan_and_scan``: the whole picture, and crops along its longer side (Gemma 3)."""

import math
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``Gemma3ImageProcessor`` with ``do_pan_and_scan``.

    Attributes:
        height: Of what the tower sees, in pixels.
        width: The same.
        tokens: Feature rows of the vision program for each crop.
        max_tiles: The most crops; the whole picture is not counted.
        min_crop: The shortest side of a crop.
        min_ratio: Longer by shorter side of a picture that is cut at all.
        resample: The filter of every resize.
        on_white: Lay transparent pictures on white (``do_convert_rgb``).
        values: Levels to floats.
    """

    height: PositiveInt
    width: PositiveInt
    tokens: PositiveInt
    max_tiles: Annotated[int, Field(ge=2, le=256)]
    min_crop: PositiveInt
    min_ratio: PositiveFloat
    resample: Resample
    on_white: bool
    values: Values


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of crops; (0, 0): none.

    Mirrors ``Gemma3ImageProcessorPil.pan_and_scan``, to the rounding of its divisions.
    """
    longer, shorter = max(height, width), min(height, width)
    if longer / shorter < options.min_ratio:
        return 0, 0
    count = min(math.floor(longer / options.min_crop), math.floor(longer / shorter + 0.5))
    count = min(options.max_tiles, max(2, count))
    if min(math.ceil(longer / count), shorter) < options.min_crop:
        return 0, 0
    return (1, count) if width >= height else (count, 1)


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture."""
    rows, columns = grid(height, width, options)
    return (1 + rows * columns) * options.tokens


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``Gemma3ImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [1 + crops, 3, H, W]: the whole picture, then its crops in order.
    """
    rows, columns = grid(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    parts = [picture]
    if rows * columns:
        high, wide = math.ceil(image.height / rows), math.ceil(image.width / columns)
        for top in range(0, rows * high, high):
            for left in range(0, columns * wide, wide):
                right, bottom = min(left + wide, image.width), min(top + high, image.height)
                parts.append(picture.crop((left, top, right, bottom)))
    values = np.empty((len(parts), 3, options.height, options.width), dtype=np.float32)
    table = pixels.table(options.values)
    for index, part in enumerate(parts):
        frame = pixels.resized(part, options.height, options.width, options.resample)
        levels = np.asarray(frame)
        for channel in range(3):
            values[index, channel] = table[channel][levels[..., channel]]
    made = len(parts) * options.tokens
    # In a prompt the crops stand in one row, whatever way they were cut.
    cuts = (1, rows * columns) if rows * columns else (0, 0)
    return PreparedImage({"pixel_values": values}, made, (1, 1, made), cuts)


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``tiles`` is free."""
    shape = ("tiles", 3, options.height, options.width)
    return (TensorSpec(name="pixel_values", dtype="float32", shape=shape),)


PAN_AND_SCAN = Geometry("pan_and_scan", Options, prepare, tokens, inputs)
