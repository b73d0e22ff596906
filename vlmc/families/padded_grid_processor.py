"""Reads the JSON of Kimi K2.5's image processor."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _PLAIN_COLORS,
    _count,
    _flag,
    _resample,
    _settings,
    _size,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

PADDED_GRID_CLASSES: dict[str, Json] = {
    "Kimi_K25ImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "size": {"max_height": 512, "max_width": 512},
        "max_patches": 16384,
        "patch_size": 14,
        "merge_size": 2,
    }
}


def padded_grid_spec(
    image_processor_json: Json, patch: int, merge: int, side: int, *, at: str = _AT
) -> ImageSpec:
    """The ``padded_grid`` geometry of Kimi K2.5's image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        patch: The side, in pixels, of the patches that the tower takes.
        merge: The side, in patches, of the squares that the tower merges.
        side: Positions along a side of the tower's table.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or patches of another size than
            the tower's.
    """
    _, values = _settings(image_processor_json, PADDED_GRID_CLASSES, at)
    for key, wanted in (("patch_size", patch), ("merge_size", merge)):
        if _count(values[key], f"{at}: {key}") != wanted:
            raise VlmcError(
                f"the processor says {values[key]}, the vision tower {wanted}", at=f"{at}: {key}"
            )
    size = _size(values, "size", at, square=True)
    if "max_height" not in size or size["max_height"] != size["max_width"]:
        message = f"{size} has no 'max_height' and 'max_width' that are the same"
        raise VlmcError(message, at=f"{at}: size")
    options: Json = {
        "patch_size": patch,
        "merge_size": merge,
        "max_patches": _count(values["max_patches"], f"{at}: max_patches"),
        "max_side": size["max_height"],  # patches, whatever its name
        "resize": _flag(values, "do_resize", at),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": {**_values(values, at), "fused": True},
        "table": {"side": side, "taps": 4, "centers": "halves"},
    }
    return check_spec(ImageSpec(geometry="padded_grid", options=options), at=at)
