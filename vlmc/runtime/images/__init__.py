"""From pictures to the inputs of a vision program: one table of geometries."""

import json
from collections.abc import Sequence

from PIL import Image
from pydantic import ValidationError

from vlmc.bundle.manifest import ImageSpec, TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images.anyres import ANYRES
from vlmc.runtime.images.canvas import CANVAS
from vlmc.runtime.images.decode import open_image
from vlmc.runtime.images.edged_patches import EDGED_PATCHES
from vlmc.runtime.images.fixed import FIXED
from vlmc.runtime.images.hd_crops import HD_CROPS
from vlmc.runtime.images.naflex import NAFLEX
from vlmc.runtime.images.native_grid import NATIVE_GRID
from vlmc.runtime.images.overlap import OVERLAP
from vlmc.runtime.images.padded_grid import PADDED_GRID
from vlmc.runtime.images.pan_and_scan import PAN_AND_SCAN
from vlmc.runtime.images.patch_rows import PATCH_ROWS
from vlmc.runtime.images.quarters import QUARTERS
from vlmc.runtime.images.slices import SLICES
from vlmc.runtime.images.spec import Geometry
from vlmc.runtime.images.split import SPLIT
from vlmc.runtime.images.tiles import TILES
from vlmc.runtime.images.token_budget import TOKEN_BUDGET
from vlmc.runtime.images.two_sizes import TWO_SIZES
from vlmc.runtime.images.whole_patches import WHOLE_PATCHES
from vlmc.runtime.images.whole_then_tiles import WHOLE_THEN_TILES
from vlmc.runtime.types import PreparedImage
from vlmc.schema import Frozen, lookup

__all__ = [
    "GEOMETRIES",
    "check_spec",
    "image_tokens",
    "open_image",
    "prepare",
    "together",
    "vision_inputs",
]

GEOMETRIES: dict[str, Geometry] = {
    row.name: row
    for row in (
        FIXED,
        NATIVE_GRID,
        PADDED_GRID,
        WHOLE_PATCHES,
        TOKEN_BUDGET,
        EDGED_PATCHES,
        NAFLEX,
        TILES,
        SPLIT,
        ANYRES,
        PAN_AND_SCAN,
        CANVAS,
        WHOLE_THEN_TILES,
        QUARTERS,
        PATCH_ROWS,
        HD_CROPS,
        TWO_SIZES,
        OVERLAP,
        SLICES,
    )
}


def prepare(image: Image.Image, spec: ImageSpec, *, count: int = 1) -> PreparedImage:
    """One picture (as ``open_image`` returns it), ready for the vision program.

    Args:
        image: The picture.
        spec: The bundle's image processing.
        count: Pictures of the same prompt.

    Raises:
        VlmcError: The geometry refuses the picture's size, or ``spec`` is wrong.
    """
    row, options = _resolve(spec)
    return row.prepare(image, row.among(options, count))


def together(pictures: Sequence[PreparedImage], spec: ImageSpec) -> list[PreparedImage]:
    """The pictures of one prompt, each as ``prepare`` made it, now that all are known.

    Raises:
        VlmcError: ``spec`` is wrong.
    """
    return _resolve(spec)[0].together(pictures)


def image_tokens(height: int, width: int, spec: ImageSpec, *, count: int = 1) -> int:
    """Placeholder tokens of a picture of ``height`` x ``width`` pixels, one of ``count``.

    Raises:
        VlmcError: As ``prepare`` would for a picture of that size.
    """
    row, options = _resolve(spec)
    if height < 1 or width < 1:
        raise VlmcError(f"a picture of {width} x {height} pixels has no pixels")
    return row.tokens(height, width, row.among(options, count))


def vision_inputs(spec: ImageSpec) -> tuple[TensorSpec, ...]:
    """Inputs of the vision program for one image; free dimensions are named.

    Raises:
        VlmcError: ``spec`` is wrong.
    """
    row, options = _resolve(spec)
    return row.inputs(options)


def check_spec(spec: ImageSpec, *, at: str) -> ImageSpec:
    """``spec`` itself, once its geometry and every option are known to be right.

    Raises:
        VlmcError: They are not; ``at`` is the file the options came from.
    """
    _resolve(spec, at=at)
    return spec


def _resolve(spec: ImageSpec, at: str = "processor/images.json") -> tuple[Geometry, Frozen]:
    row = lookup(GEOMETRIES, spec.geometry, kind="image geometry", at=f"{at}: geometry")
    try:
        # Through JSON text: there a list may stand for a tuple, and nothing else is converted.
        return row, row.options.model_validate_json(json.dumps(spec.options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        place = f"{at}: {path}" if path else at
        raise VlmcError(first["msg"].removeprefix("Value error, "), at=place) from error
