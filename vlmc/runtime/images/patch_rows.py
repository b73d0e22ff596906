"""``patch_rows``: no larger than a canvas, filled up to whole patches, row by row (Fuyu)."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Level, Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen

PADDINGS = ("constant", "edge", "reflect", "symmetric")


class Options(Frozen):
    """Constants of ``FuyuImageProcessor``; sizes in pixels.

    ``height`` and ``width`` are the canvas: what a picture is brought within, with ``resize``, and
    filled up to, with ``padding``, a mode of ``numpy.pad``; ``level`` is that of ``constant``.
    """

    patch_height: PositiveInt
    patch_width: PositiveInt
    height: PositiveInt
    width: PositiveInt
    resize: bool
    resample: Resample
    padding: Literal["constant", "edge", "reflect", "symmetric"] | None
    level: Level
    on_white: bool
    values: Values


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels that a picture is resized to, before it is filled up.

    Mirrors ``FuyuImageProcessorPil.resize``.

    Raises:
        VlmcError: Nothing of it would be left.
    """
    if not options.resize or (height <= options.height and width <= options.width):
        return height, width
    scale = min(options.height / height, options.width / width)
    new_height, new_width = int(height * scale), int(width * scale)
    pixels.check_target(height, width, new_height, new_width)
    return new_height, new_width


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of a picture's patches.

    Mirrors ``FuyuProcessor._process_images``.

    Raises:
        VlmcError: As ``target_size``; or no whole patches cover the picture.
    """
    target = target_size(height, width, options)
    canvas = options.height, options.width
    short = [side < most for side, most in zip(target, canvas, strict=True)]
    long = [side > most for side, most in zip(target, canvas, strict=True)]
    if options.padding is None or not any(short):
        canvas = target
    elif any(long):
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is larger than this model's canvas "
            f"of {pixels.size_text(*canvas)} on one side, and is not resized"
        )
    patch = options.patch_height, options.patch_width
    covered = [
        min(most, math.ceil(side / size) * size)
        for side, most, size in zip(target, canvas, patch, strict=True)
    ]
    rows, columns = covered[0] // patch[0], covered[1] // patch[1]
    if (rows * patch[0], columns * patch[1]) != tuple(covered):
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} does not fit this model: "
            f"{pixels.size_text(*covered)} are no whole patches of {pixels.size_text(*patch)}"
        )
    return rows, columns


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: its patches."""
    rows, columns = grid(height, width, options)
    return rows * columns


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``FuyuImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [P, ph*pw*3], patches in rows, each in rows of pixels.

    Raises:
        VlmcError: The picture's size is refused, see ``grid``.
    """
    rows, columns = grid(image.height, image.width, options)
    height, width = target_size(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    if (height, width) != (image.height, image.width):
        picture = pixels.resized(picture, height, width, options.resample)
    levels = _filled(np.asarray(picture), rows, columns, options)
    values = pixels.table(options.values)[np.arange(3), levels]
    size = options.patch_height, options.patch_width
    patches = values.reshape(rows, size[0], columns, size[1], 3).swapaxes(1, 2)
    return PreparedImage(
        tensors={"pixel_values": np.ascontiguousarray(patches).reshape(rows * columns, -1)},
        tokens=rows * columns,
        grid=(1, rows, columns),
    )


def _filled(
    picture: NDArray[np.uint8], rows: int, columns: int, options: Options
) -> NDArray[np.uint8]:
    """The picture with its last row and column of patches filled up, as far as those go."""
    below = rows * options.patch_height - picture.shape[0]
    beside = columns * options.patch_width - picture.shape[1]
    places = ((0, below), (0, beside), (0, 0))
    if not below and not beside:
        return picture
    if options.padding == "constant":
        return np.pad(picture, places, constant_values=options.level)
    return np.pad(picture, places, mode=options.padding or "edge")


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` is free."""
    row = 3 * options.patch_height * options.patch_width
    return (TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),)


PATCH_ROWS = Geometry("patch_rows", Options, prepare, tokens, inputs)
