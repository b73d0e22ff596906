"""Reads the JSON of Llama 4's image processor, as that class reads it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _COMMON,
    _PLAIN_COLORS,
    _box,
    _flag,
    _resample,
    _settings,
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

CANVAS_CLASSES: dict[str, Json] = {
    "Llama4ImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "resample": 2,
        "size": {"height": 336, "width": 336},
        "max_patches": 16,
        "resize_to_max_canvas": False,
    }
}


def canvas_spec(
    image_processor_json: Json,
    tokens: int,
    *,
    image_size: int,
    max_tiles: int | None = None,
    at: str = _AT,
) -> ImageSpec:
    """The ``canvas`` geometry of a Llama 4 image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows the vision tower makes of every tile.
        image_size: The side of the square picture the vision tower takes.
        max_tiles: The recipe's own bound, in the place of the processor's.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or tiles of another size than the
            tower takes.
    """
    _, values = _settings(image_processor_json, CANVAS_CLASSES, at)
    check_side(_box(values, "size", at), image_size, at)
    if not _flag(values, "do_resize", at):
        raise VlmcError("pictures would keep sizes of their own", at=f"{at}: do_resize")
    if _flag(values, "do_normalize", at) and not _flag(values, "do_rescale", at):
        raise VlmcError("bytes cannot be normalized", at=f"{at}: do_rescale")
    options: Json = {
        "side": image_size,
        "max_tiles": values["max_patches"] if max_tiles is None else max_tiles,
        "tokens": tokens,
        "enlarge": _flag(values, "resize_to_max_canvas", at),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    spec = ImageSpec(geometry="canvas", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")
