"""Reads the JSON of LLaVA-NeXT's and LLaVA-OneVision's image processors, as those classes do."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _CLIP,
    _CLIP_COLORS,
    _COMMON,
    _background,
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
NEXT = "LlavaNextImageProcessor"
ONEVISION = "LlavaOnevisionImageProcessor"
RESOLUTIONS: dict[str, list[list[int]]] = {
    NEXT: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    ONEVISION: [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)],
}
"""What the processor's class and the model's may tile pictures at where they do not say."""

ANYRES_CLASSES: dict[str, Json] = {
    NEXT: {**_CLIP, "do_pad": True, _PINPOINTS: RESOLUTIONS[NEXT]},
    ONEVISION: {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"height": 384, "width": 384},
        "do_pad": True,
        _PINPOINTS: RESOLUTIONS[ONEVISION],
    },
}
_TILE_KEYS = ({"height", "width"}, {"shortest_edge"})


def anyres_spec(
    image_processor_json: Json,
    *,
    side: int,
    rows: int,
    pinpoints: object,
    kind: str = NEXT,
    most_tiles: int | None = None,
    at: str = _AT,
) -> ImageSpec:
    """The ``anyres`` geometry of a LLaVA-NeXT or LLaVA-OneVision image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        side: Height and width of the picture the vision tower takes.
        rows: Feature rows along its side.
        pinpoints: The model's resolutions, [height, width] each, that the processor's must equal.
        kind: The class the model's processor must be of.
        most_tiles: Features of more tiles are shrunk by the model; None: never.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, tiles of another size than the
            tower takes, or other resolutions than the model's.
    """
    _, values = _settings(image_processor_json, {kind: ANYRES_CLASSES[kind]}, at)
    sizes: dict[str, Json] = {}
    sizes["size"] = {**_size(values, "size", at, square=_flag(values, "default_to_square", at))}
    if "crop_size" in values:
        sizes["crop_size"] = _box(values, "crop_size", at)
    for key, given in sizes.items():
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
    if most_tiles is not None:
        options["most_tiles"] = most_tiles
    if kind == ONEVISION:
        if not _flag(values, "do_resize", at):
            raise VlmcError(
                "pictures among others would keep their own size", at=f"{at}: do_resize"
            )
        options["background"] = _background(values, at)
    return check_spec(ImageSpec(geometry="anyres", options=options), at=at)
