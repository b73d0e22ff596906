"""Reads the JSON of Idefics2's and Aria's image processors, as those classes read it."""

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

QUARTERS_CLASSES: dict[str, Json] = {
    "Idefics2ImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "resample": 2,
        "size": {"shortest_edge": 378, "longest_edge": 980},
        "do_image_splitting": False,
        "do_pad": True,  # to the largest of a prompt's pictures, and masked
    }
}
"""The class served by the geometry ``quarters``: the defaults for absent keys."""

ARIA_CLASSES: dict[str, Json] = {
    "AriaImageProcessor": {**_COMMON, **_PLAIN_COLORS, "min_image_size": 336}
}
"""As ``QUARTERS_CLASSES``, of the one that always enlarges."""

ARIA_SIDE = 980
"""What ``AriaProcessor`` says at every call, whatever its image processor's file does."""


def quarters_spec(
    image_processor_json: Json, tokens: int, *, patch_size: int, at: str = _AT
) -> ImageSpec:
    """The ``quarters`` geometry of an Idefics2 image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows of each quarter and of the whole.
        patch_size: Of the tower, in pixels.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, or a value its class cannot use.
    """
    _, values = _settings(image_processor_json, QUARTERS_CLASSES, at)
    size = _size(values, "size", at, square=_flag(values, "default_to_square", at))
    if set(size) not in ({"shortest_edge", "longest_edge"}, {"height", "width"}):
        raise VlmcError(
            f"pictures cannot be resized by {' and '.join(size)} here",
            at=f"{at}: size",
            allowed=("shortest_edge and longest_edge", "height and width"),
        )
    resize: Json = {key.removesuffix("_edge"): length for key, length in size.items()}
    options: Json = {
        "patch_size": patch_size,
        "tokens": tokens,
        "split": _flag(values, "do_image_splitting", at),
        "resize": resize if _flag(values, "do_resize", at) else None,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="quarters", options=options), at=at)


def filled_spec(
    image_processor_json: Json, tokens: int, *, patch_size: int, at: str = _AT
) -> ImageSpec:
    """The ``quarters`` geometry of an Aria image processor: one part, of ``ARIA_SIDE`` pixels.

    ``AriaProcessor`` never has it cut a picture.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows of a picture.
        patch_size: Of the tower, in pixels.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, or a value its class cannot use.
    """
    _, values = _settings(image_processor_json, ARIA_CLASSES, at)
    least = _count(values["min_image_size"], f"{at}: min_image_size")
    if least > ARIA_SIDE:
        raise VlmcError(
            f"pictures would be {least} pixels high; the square they are laid on has {ARIA_SIDE}",
            at=f"{at}: min_image_size",
        )
    options: Json = {
        "patch_size": patch_size,
        "tokens": tokens,
        "split": False,
        "resize": {"longest": ARIA_SIDE, "least": least},
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="quarters", options=options), at=at)
