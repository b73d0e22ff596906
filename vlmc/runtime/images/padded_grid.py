"""``padded_grid``: no larger than it is, padded to whole merged patches (Kimi K2.5)."""

import math

import numpy as np
from PIL import Image
from pydantic import PositiveInt, model_validator

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import pixels, torch_resize
from vlmc.runtime.images.patches import patchify, positions
from vlmc.runtime.images.pixels import Resample, Values
from vlmc.runtime.images.position_table import PositionTable, table_rows
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen


class Options(Frozen):
    """Constants of ``Kimi_K25ImageProcessor``; ``patch_size`` in pixels, all else in patches.

    Attributes:
        patch_size: Of the tower.
        merge_size: Patches along a side of a feature row.
        max_patches: Of a picture, before it is padded.
        max_side: Patches along a side, at most.
        table: The tower's learned positions.
    """

    patch_size: PositiveInt
    merge_size: PositiveInt
    max_patches: PositiveInt
    max_side: PositiveInt
    resize: bool
    resample: Resample
    on_white: bool
    values: Values
    table: PositionTable

    @model_validator(mode="after")
    def _filtered(self) -> "Options":
        if self.resample not in torch_resize.FILTERS:
            raise ValueError(f"resample is one of {', '.join(torch_resize.FILTERS)} here")
        return self


def shrunk(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels that a picture has before it is padded.

    Mirrors ``navit_resize`` of ``transformers.models.kimi_k25.image_processing_kimi_k25``.
    """
    if not options.resize:
        return height, width
    size, most = options.patch_size, options.max_side * options.patch_size
    patches = max(1.0, height // size) * max(1.0, width // size)
    budget = math.sqrt(options.max_patches / patches)
    scale = min(1.0, budget, most / height, most / width)
    return min(max(1, int(height * scale)), most), min(max(1, int(width * scale)), most)


def target_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """The size (height, width) in pixels at which a picture is cut into patches.

    Raises:
        VlmcError: Pictures are not resized, and so not padded, and the sides are no multiples of a
            merged patch.
    """
    factor = options.patch_size * options.merge_size
    if not options.resize and (height % factor or width % factor):
        raise VlmcError(
            f"a picture of {pixels.size_text(height, width)} does not fit this model: "
            f"both sides must be multiples of {factor} pixels"
        )
    high, wide = shrunk(height, width, options)
    high, wide = -(-high // factor) * factor, -(-wide // factor) * factor
    pixels.check_target(height, width, high, wide)
    return high, wide


def tokens(height: int, width: int, options: Options) -> int:
    """Feature rows of a picture: its merged patches."""
    high, wide = target_size(height, width, options)
    return high * wide // (options.patch_size * options.merge_size) ** 2


def prepare(image: Image.Image, options: Options) -> PreparedImage:
    """One picture for the vision program.

    Equals ``Kimi_K25ImageProcessor`` on the resizing of bytes that torchvision has for processors
    with AVX2, but for the order of patches.

    Returns:
        ``pixel_values`` float32 [P, 3*ps*ps], ``patch_positions`` int64 [P, 2], and what each patch
        takes of the table of positions, ``table_rows`` and ``table_weights`` [P, taps**2], all in
        merged-block order. The grid is in merged patches.

    Raises:
        VlmcError: The picture's size is refused, see ``target_size``.
    """
    height, width = target_size(image.height, image.width, options)
    high, wide = shrunk(image.height, image.width, options)
    picture = np.asarray(pixels.rgb(image, on_white=options.on_white))
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    canvas[:high, :wide] = torch_resize.resized(picture, high, wide, options.resample)
    size, merge = options.patch_size, options.merge_size
    rows, columns = height // size, width // size
    places = positions(rows, columns, merge)
    mixed, weights = table_rows(places, rows, columns, options.table)
    return PreparedImage(
        tensors={
            "pixel_values": patchify(canvas, size, merge, 1, options.values),
            "patch_positions": places,
            "table_rows": mixed,
            "table_weights": weights,
        },
        tokens=rows * columns // merge**2,
        grid=(1, rows // merge, columns // merge),
    )


def inputs(options: Options) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program; ``patches`` is free."""
    taps = ("patches", options.table.taps**2)
    row = 3 * options.patch_size**2
    return (
        TensorSpec(name="pixel_values", dtype="float32", shape=("patches", row)),
        TensorSpec(name="patch_positions", dtype="int64", shape=("patches", 2)),
        TensorSpec(name="table_rows", dtype="int64", shape=taps),
        TensorSpec(name="table_weights", dtype="float32", shape=taps),
    )


PADDED_GRID = Geometry("padded_grid", Options, prepare, tokens, inputs)
