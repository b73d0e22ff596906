"""Reads the JSON of Fuyu's image processor, as that class reads it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import whole, word
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _PLAIN_COLORS,
    _box,
    _flag,
    _number,
    _resample,
    _settings,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.runtime.images.patch_rows import PADDINGS
from vlmc.schema import Json

PATCH_ROWS_CLASSES: dict[str, Json] = {
    "FuyuImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "resample": 2,
        "size": {"height": 1080, "width": 1920},
        "patch_size": {"height": 30, "width": 30},
        "do_pad": True,
        "padding_value": 1.0,
        "padding_mode": "constant",
        "do_convert_rgb": False,
        "default_to_square": True,
    }
}


def patch_rows_spec(image_processor_json: Json, numbers: int, *, at: str = _AT) -> ImageSpec:
    """The ``patch_rows`` geometry of a Fuyu image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        numbers: In a patch, as the model takes it: pixels times channels.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or patches of another size than
            the model takes.
    """
    _, values = _settings(image_processor_json, PATCH_ROWS_CLASSES, at)
    size, patch = _box(values, "size", at), _box(values, "patch_size", at)
    made = 3 * whole(patch, "height", at=at) * whole(patch, "width", at=at)
    if made != numbers:
        raise VlmcError(
            f"the processor's patches of {patch['width']} x {patch['height']} pixels are "
            f"{made} numbers, the model takes {numbers}",
            at=f"{at}: patch_size",
        )
    padding = None
    if _flag(values, "do_pad", at):
        padding = word(values, "padding_mode", "constant", PADDINGS, at=at)
    options: Json = {
        "patch_height": patch["height"],
        "patch_width": patch["width"],
        "height": size["height"],
        "width": size["width"],
        "resize": _flag(values, "do_resize", at),
        "resample": _resample(values, at),
        "padding": padding,
        # It becomes a level of the picture, before that is rescaled.
        "level": int(_number(values["padding_value"], f"{at}: padding_value")),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="patch_rows", options=options), at=at)
