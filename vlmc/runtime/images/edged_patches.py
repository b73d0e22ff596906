"""``edged_patches``: a picture in patches that need not merge evenly at its edges (LightOnOCR)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import PositiveInt

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels, whole_patches
from vlmc.runtime.images.patches import patchify, positions
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``PixtralImageProcessor`` and of a tower that cuts its pictures otherwise.

    Attributes:
        picture: How a picture is resized; its ``patch_size`` divides the sides.
        patch_size: Of the tower, in pixels.
        merge_size: The side of a feature row, in patches.
    """

    picture: whole_patches.Options
    patch_size: PositiveInt
    merge_size: PositiveInt


def grid(height: int, width: int, options: Options) -> tuple[int, int]:
    """Rows and columns of the tower's patches; those at the edges may be merged into no feature.

    Raises:
        VlmcError: As ``whole_patches.target_size``; or the picture has no feature at all.
    """
    new_height, new_width = whole_patches.target_size(height, width, options.picture)
    rows, columns = new_height // options.patch_size, new_width // options.patch_size
    if min(rows, columns) < options.merge_size:
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} is too narrow for this model: "
            f"its sides must have {options.patch_size * options.merge_size} pixels at the least"
        )
    return rows, columns


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: its merged patches."""
    rows, columns = grid(height, width, options)
    return (rows // options.merge_size) * (columns // options.merge_size)


def merged(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """The patches of each feature row, int64 [tokens, merge**2], patches counted row by row."""
    patches = np.arange(rows * columns).reshape(rows, columns)
    down, across = rows // merge, columns // merge
    blocks = patches[: down * merge, : across * merge].reshape(down, merge, across, merge)
    return blocks.transpose(0, 2, 1, 3).reshape(down * across, merge * merge)


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program; pixels equal ``PixtralImageProcessorPil`` bit for bit.

    Returns:
        ``pixel_values`` float32 [P, 3*ps*ps] and ``patch_positions`` int64 [P, 2], row by row;
        ``merged_patches`` int64 [tokens, merge**2].

    Raises:
        VlmcError: The picture's size is refused, see ``grid``.
    """
    rows, columns = grid(image.height, image.width, options)
    picture = pixels.rgb(image, on_white=options.picture.on_white)
    if options.picture.resize:
        size = whole_patches.target_size(image.height, image.width, options.picture)
        picture = pixels.resized(picture, *size, options.picture.resample)
    side = options.patch_size
    levels = np.asarray(picture)[: rows * side, : columns * side]
    joined = merged(rows, columns, options.merge_size)
    return PreparedImage(
        tensors={
            "pixel_values": patchify(levels, side, 1, 1, options.picture.values),
            "patch_positions": positions(rows, columns, 1),
            "merged_patches": joined,
        },
        tokens=len(joined),
        grid=(1, rows // options.merge_size, columns // options.merge_size),
    )


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` and ``image_tokens`` are free."""
    row, block = 3 * options.patch_size**2, options.merge_size**2
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
        TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)),
        TensorSpec(name="merged_patches", dtype="int64", shape=("image_tokens", block)),
    )


EDGED_PATCHES = Geometry("edged_patches", Options, prepare, tokens, inputs)
