"""Reads the JSON of Gemma 3's image processor, told to pan and scan."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.families.image_processors import (
    _AT,
    FIXED_CLASSES,
    _box,
    _resample,
    _settings,
    _values,
    check_side,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

# What Gemma3Processor hands its image processor, whatever that one's own file says.
_MIN_CROP = 256
_MIN_RATIO = 1.2


def pan_and_scan_spec(
    image_processor_json: Json, tokens: int, *, image_size: int, max_tiles: int, at: str = _AT
) -> ImageSpec:
    """The ``pan_and_scan`` geometry of a Gemma 3 image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        tokens: Feature rows the vision tower makes of every crop.
        image_size: The side of the square picture the vision tower takes.
        max_tiles: The recipe's bound: most crops beside the whole picture.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, a value its class cannot use, or pictures of another size than
            the tower takes.
    """
    _, values = _settings(image_processor_json, FIXED_CLASSES, at)
    size = _box(values, "size", at)
    check_side(size, image_size, at)
    options: Json = {
        **size,
        "tokens": tokens,
        "max_tiles": max_tiles,
        "min_crop": _MIN_CROP,
        "min_ratio": _MIN_RATIO,
        "resample": _resample(values, at),
        "on_white": True,
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="pan_and_scan", options=options), at=at)
