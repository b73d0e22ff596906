"""``whole_patches``: no larger than a bound, then enlarged to whole patches (Pixtral)."""

import math

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels
from vlmc.runtime.images.patches import patchify, positions
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``PixtralImageProcessor``; sizes in pixels, ``merge_size`` in patches."""

    patch_size: PositiveInt
    merge_size: PositiveInt
    max_height: PositiveInt
    max_width: PositiveInt
    resize: bool
    resample: Resample
    on_white: bool
    values: Values


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels at which a picture is cut into patches.

    Mirrors ``get_resize_output_image_size`` of
    ``transformers.models.pixtral.image_processing_pil_pixtral``.

    Raises:
        VlmcError: The picture is too narrow; or, where pictures are not resized, its sides are no
            multiples of a merged patch.
    """
    factor = options.patch_size * options.merge_size
    if not options.resize:
        if height % factor or width % factor:
            raise VlmcError(
                f"a picture of {pixels.size_text(height, width)} does not fit this model: "
                f"both sides must be multiples of {factor} pixels"
            )
        return height, width
    ratio = max(height / options.max_height, width / options.max_width)
    fitted = (math.floor(height / ratio), math.floor(width / ratio)) if ratio > 1 else None
    new_height, new_width = (
        ((side - 1) // factor + 1) * factor for side in fitted or (height, width)
    )
    pixels.check_target(height, width, new_height, new_width)
    return new_height, new_width


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: its merged patches."""
    rows, columns = grid(height, width, options)
    return rows * columns


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of a picture's merged patches.

    Raises:
        VlmcError: As ``target_size``.
    """
    new_height, new_width = target_size(height, width, options)
    factor = options.patch_size * options.merge_size
    return new_height // factor, new_width // factor


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; equals ``PixtralImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [P, 3*ps*ps] and ``patch_positions`` int64 [P, 2], in
        merged-block order. Every row of merged patches but the last stands as a tile.

    Raises:
        VlmcError: The picture's size is refused, see ``target_size``.
    """
    height, width = target_size(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.on_white)
    if options.resize:
        picture = pixels.resized(picture, height, width, options.resample)
    size, merge = options.patch_size, options.merge_size
    rows, columns = height // size // merge, width // size // merge
    return PreparedImage(
        tensors={
            "pixel_values": patchify(np.asarray(picture), size, merge, 1, options.values),
            "patch_positions": positions(rows * merge, columns * merge, merge),
        },
        tokens=rows * columns,
        grid=(1, rows, columns),
        tiles=(rows - 1, 1),
    )


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` is free."""
    row = 3 * options.patch_size**2
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
        TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)),
    )


WHOLE_PATCHES = Geometry("whole_patches", Options, prepare, tokens, inputs)
