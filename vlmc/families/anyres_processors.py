"""Reads the JSON of LLaVA-NeXT's image processor, as that class reads it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _CLIP,
    _box,
    _flag,
    _resample,
    _settings,
    _size,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

_PINPOINTS = "image_grid_pinpoints"
ANYRES_CLASSES: dict[str, Json] = {
    "LlavaNextImageProcessor": {
        **_CLIP,
        "do_pad": True,
        _PINPOINTS: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    }
}
_TILE_KEYS = ({"height", "width"}, {"shortest_edge"})


def anyres_spec(
    image_processor_json: Json, *, side: int, rows: int, pinpoints: object, at: str = _AT
) -> ImageSpec:
    """The ``anyres`` geometry of a LLaVA-NeXT image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        side: Height and width of the picture the vision tower takes.
        rows: Feature rows along its side.
        pinpoints: The model's resolutions, [height, width] each, that the processor's must equal.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, tiles of another size than the
            tower takes, or other resolutions than the model's.
    """
    _, values = _settings(image_processor_json, ANYRES_CLASSES, at)
    size = _size(values, "size", at, square=_flag(values, "default_to_square", at))
    crop = _box(values, "crop_size", at)
    for key, given in (("size", size), ("crop_size", crop)):
        if set(given.values()) != {side} or set(given) not in _TILE_KEYS:
            raise VlmcError(
                f"the processor makes tiles of {given}, the vision tower takes {side} x {side}",
                at=f"{at}: {key}",
            )
    if values[_PINPOINTS] != pinpoints:
        raise VlmcError("the resolutions are not those of the model", at=f"{at}: {_PINPOINTS}")
    options: Json = {
        "side": side,
        "rows": rows,
        "resolutions": pinpoints,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="anyres", options=options), at=at)
