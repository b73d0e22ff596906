"""Reads the JSON of Perception LM's image processor, as that class reads it."""

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
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

_CLASSES: dict[str, Json] = {
    "PerceptionLMImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "vision_input_type": "thumb+tile",
        "tile_size": 448,
        "max_num_tiles": 36,
    }
}


def whole_then_tiles_spec(
    image_processor_json: Json,
    tokens: int,
    *,
    image_size: tuple[int, int],
    max_tiles: int | None = None,
    at: str = _AT,
) -> ImageSpec:
    """The ``whole_then_tiles`` geometry of a Perception LM image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows the vision tower makes of every tile.
        image_size: Height and width of the picture the vision tower takes.
        max_tiles: The recipe's own bound, in the place of the processor's.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or tiles of another size than the
            tower takes.
    """
    _, values = _settings(image_processor_json, _CLASSES, at)
    side = _count(values["tile_size"], f"{at}: tile_size")
    if image_size[0] != image_size[1]:
        message = f"tiles are squares, the vision tower takes {image_size[1]} x {image_size[0]}"
        raise VlmcError(message, at="config.json: vision_config.model_args.img_size")
    check_side({"height": side, "width": side}, image_size[0], at)
    if not _flag(values, "do_resize", at):
        raise VlmcError("pictures would keep sizes of their own", at=f"{at}: do_resize")
    most = values["max_num_tiles"] if max_tiles is None else max_tiles
    options: Json = {
        "side": side,
        "max_tiles": most if values["vision_input_type"] == "thumb+tile" else None,
        "tokens": tokens,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": {**_values(values, at), "fused": True},
    }
    spec = ImageSpec(geometry="whole_then_tiles", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")
