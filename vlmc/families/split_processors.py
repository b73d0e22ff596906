"""Reads the JSON of the image processors that split pictures into tiles, as they read it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _COMMON,
    _PLAIN_COLORS,
    _flag,
    _resample,
    _settings,
    _size,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

_SPLIT: Json = {
    **_COMMON,
    **_PLAIN_COLORS,
    "resample": 1,
    "size": {"longest_edge": 4 * 364},
    "default_to_square": True,
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,  # with empty tiles, to the most of a batch: a picture alone has none
}
SPLIT_CLASSES: dict[str, Json] = {
    "Idefics3ImageProcessor": _SPLIT,
    "SmolVLMImageProcessor": _SPLIT,
}
"""The classes served by the geometry ``split``: the defaults for absent keys."""


def split_spec(
    image_processor_json: Json,
    tokens: int,
    *,
    at: str = "preprocessor_config.json",
    image_size: int,
) -> ImageSpec:
    """The ``split`` geometry of an Idefics3 or SmolVLM image processor.

    Args:
        image_processor_json: ``preprocessor_config.json``, or the ``image_processor`` section of
            ``processor_config.json``.
        tokens: Feature rows the vision tower makes of every tile.
        at: The file, for errors.
        image_size: The side of the tiles the vision tower takes, to be checked.

    Raises:
        VlmcError: Another class, a value its class cannot use, or tiles of another size.
    """
    _, values = _settings(image_processor_json, SPLIT_CLASSES, at)
    edges = _size(values, "max_image_size", at, square=False)
    if edges != {"longest_edge": image_size}:
        raise VlmcError(
            f"the processor makes tiles by {edges}, the vision tower takes a longest_edge of "
            f"{image_size}",
            at=f"{at}: max_image_size",
        )
    size = _size(values, "size", at, square=_flag(values, "default_to_square", at))
    if set(size) not in ({"longest_edge"}, {"height", "width"}):
        raise VlmcError(
            f"pictures cannot be resized by {' and '.join(size)} here",
            at=f"{at}: size",
            allowed=("longest_edge", "height and width"),
        )
    resize: Json = {"longest": size["longest_edge"]} if "longest_edge" in size else {**size}
    options: Json = {
        "tile": image_size,
        "tokens": tokens,
        "split": _flag(values, "do_image_splitting", at),
        "resize": resize if _flag(values, "do_resize", at) else None,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="split", options=options), at=at)
