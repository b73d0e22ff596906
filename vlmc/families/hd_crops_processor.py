"""Reads the JSON of Phi-4's image processor, as that class reads it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _PLAIN_COLORS,
    _box,
    _count,
    _flag,
    _resample,
    _settings,
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

HD_CROPS_CLASSES: dict[str, Json] = {
    "Phi4MultimodalImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "size": {"height": 448, "width": 448},
        "patch_size": 14,
        "dynamic_hd": 36,
    }
}


def hd_crops_spec(
    image_processor_json: Json,
    *,
    image_size: int,
    patch_size: int,
    max_tiles: int | None = None,
    at: str = _AT,
) -> ImageSpec:
    """The ``hd_crops`` geometry of a Phi-4 image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        image_size: The side of the square crops the vision tower takes.
        patch_size: The side of its patches.
        max_tiles: The recipe's own bound, in the place of the processor's.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or crops or patches of another
            size than the tower's.
    """
    _, values = _settings(image_processor_json, HD_CROPS_CLASSES, at)
    check_side(_box(values, "size", at), image_size, at)
    patch = _count(values["patch_size"], f"{at}: patch_size")
    if patch != patch_size:
        raise VlmcError(
            f"the processor's patch_size is {patch}, the model's {patch_size}",
            at=f"{at}: patch_size",
        )
    options: Json = {
        "side": image_size,
        "patch_size": patch,
        "max_tiles": values["dynamic_hd"] if max_tiles is None else max_tiles,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": {**_values(values, at), "fused": True},
    }
    spec = ImageSpec(geometry="hd_crops", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")
