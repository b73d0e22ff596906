"""Reads the JSON of the hybrid DeepSeek-VL's image processor, as that class reads it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _CLIP_COLORS,
    _JANUS,
    _background,
    _box,
    _flag,
    _resample,
    _settings,
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec, vision_inputs
from vlmc.schema import Json

TWO_SIZES_CLASSES: dict[str, Json] = {
    "DeepseekVLHybridImageProcessor": {
        **_JANUS,
        "high_res_size": {"height": 1024, "width": 1024},
        "high_res_resample": 3,
        "high_res_image_mean": _CLIP_COLORS["image_mean"],
        "high_res_image_std": _CLIP_COLORS["image_std"],
    }
}


def two_sizes_spec(
    image_processor_json: Json, tokens: int, *, image_size: int, high_res: int, at: str = _AT
) -> ImageSpec:
    """The ``two_sizes`` geometry of a hybrid DeepSeek-VL's image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows of every picture.
        image_size: The side of the small frame, that the first tower takes.
        high_res: The side of the large one, that the other takes.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or frames of another size than the
            towers take.
    """
    _, values = _settings(image_processor_json, TWO_SIZES_CLASSES, at)
    for key in ("do_resize", "do_pad"):
        if not _flag(values, key, at):
            raise VlmcError("pictures would keep shapes of their own", at=f"{at}: {key}")
    # What is said of the large frame; a filter of 0 is none, so the other's holds.
    large = {**values, "resample": values["high_res_resample"] or values["resample"]}
    for key in ("image_mean", "image_std"):
        large[key] = values[f"high_res_{key}"]
    sides = [_square(values, key, at) for key in ("size", "high_res_size")]
    options: Json = {
        "large": {
            "tokens": tokens,
            "on_white": _flag(values, "do_convert_rgb", at),
            "square": None,
            "resize": {"longest": sides[1], "least": values["min_size"]},
            "boxed": _background(large, at),
            "resample": _resample(large, at),
            "crop": None,
            "values": _values(large, at),
            "pad": None,
        },
        "side": sides[0],
        "resample": _resample(values, at),
        "values": _values(values, at),
    }
    spec = check_spec(ImageSpec(geometry="two_sizes", options=options), at=at)
    wanted = {"pixel_values": image_size, "high_res_pixel_values": high_res}
    for tensor in vision_inputs(spec):
        height, width = tensor.shape[-2:]
        check_side({"height": height, "width": width}, wanted[tensor.name], at)
    return spec


def _square(values: Json, key: str, at: str) -> int:
    size = _box(values, key, at)
    if size["height"] != size["width"]:
        raise VlmcError(f"{size} is no square", at=f"{at}: {key}")
    side, least = size["height"], values["min_size"]
    if not isinstance(side, int) or not isinstance(least, int):
        raise VlmcError(f"{least!r} is not a whole number", at=f"{at}: min_size")
    return max(side, least)
