"""Reads the JSON of Molmo 2's image processor."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _PLAIN_COLORS,
    _box,
    _count,
    _flag,
    _settings,
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

OVERLAP_CLASSES: dict[str, Json] = {
    "Molmo2ImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "resample": 2,
        "size": {"height": 378, "width": 378},
        "max_crops": 8,
        "overlap_margins": [4, 4],
        "patch_size": 14,
        "pooling_size": [2, 2],
    }
}


def overlap_spec(
    image_processor_json: Json,
    *,
    image_size: int,
    patch: int,
    max_tiles: int | None = None,
    at: str = _AT,
) -> ImageSpec:
    """The ``overlap`` geometry of Molmo 2's image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        image_size: The side of the square picture the vision tower takes.
        patch: The side of its patches, in pixels.
        max_tiles: The recipe's own bound, in the place of the processor's.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, a filter that is not mirrored, or
            crops or patches of another size than the tower takes.
    """
    _, values = _settings(image_processor_json, OVERLAP_CLASSES, at)
    check_side(_box(values, "size", at), image_size, at)
    if _count(values["patch_size"], f"{at}: patch_size") != patch:
        raise VlmcError(
            f"the processor says {values['patch_size']}, the vision tower {patch}",
            at=f"{at}: patch_size",
        )
    if values["resample"] != 2:
        allowed = ["2 (bilinear)"]
        raise VlmcError(f"{values['resample']!r}", at=f"{at}: resample", allowed=allowed)
    if _flag(values, "do_normalize", at) and not _flag(values, "do_rescale", at):
        raise VlmcError("bytes cannot be normalized", at=f"{at}: do_rescale")
    options: Json = {
        "side": image_size,
        "patch_size": patch,
        "max_tiles": values["max_crops"] if max_tiles is None else max_tiles,
        "margins": values["overlap_margins"],
        "pool": values["pooling_size"],
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": {**_values(values, at), "fused": True},
    }
    spec = ImageSpec(geometry="overlap", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")
