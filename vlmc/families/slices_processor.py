"""Reads the JSON of MiniCPM-V's image processor, as its class reads it."""

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
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

SLICES_CLASSES: dict[str, Json] = {
    "MiniCPMV4_6ImageProcessor": {
        **_COMMON,
        **_PLAIN_COLORS,
        "max_slice_nums": 9,
        "scale_resolution": 448,
        "patch_size": 14,
        "slice_mode": True,
        "downsample_mode": "16x",
        "use_image_id": True,
    }
}
"""The class served by the geometry ``slices``: the defaults for absent keys."""


def slices_spec(
    image_processor_json: Json,
    patch: int,
    merge: int,
    *,
    at: str = _AT,
    max_tiles: int | None = None,
) -> ImageSpec:
    """The ``slices`` geometry of a MiniCPM-V image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        patch: The side of the tower's patches, in pixels.
        merge: The side of a feature row, in patches.
        at: The file, for errors.
        max_tiles: The recipe's own bound, in the place of the processor's.

    Raises:
        VlmcError: Another class, a value its class cannot use, or pictures cut otherwise than the
            model takes them.
    """
    _, values = _settings(image_processor_json, SLICES_CLASSES, at)
    size = _count(values["patch_size"], f"{at}: patch_size")
    if size != patch:
        message = f"the processor's patches have {size} pixels, the tower's {patch}"
        raise VlmcError(message, at=f"{at}: patch_size")
    if merge_size(values["downsample_mode"]) != merge:
        message = f"the processor counts a token for {merge_size(values['downsample_mode'])}"
        raise VlmcError(
            f"{message} patches along each side, the model makes one of {merge}",
            at=f"{at}: downsample_mode",
            hint="config.json and the image processor's file name the same downsample_mode",
        )
    if not _flag(values, "do_resize", at):
        raise VlmcError("pictures are always resized here", at=f"{at}: do_resize")
    most = values["max_slice_nums"] if max_tiles is None else max_tiles
    options: Json = {
        "patch_size": patch,
        "merge_size": merge,
        "scale": _count(values["scale_resolution"], f"{at}: scale_resolution"),
        "max_tiles": most if _flag(values, "slice_mode", at) else 1,
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    spec = ImageSpec(geometry="slices", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def merge_size(mode: object) -> int:
    """Patches along a side of a token, by the word for it; every other is as ``16x``."""
    return 2 if mode == "4x" else 4


def has_image_ids(image_processor_json: Json, *, at: str = _AT) -> bool:
    """Whether each picture's number is written before it.

    That is said of the image processor: the processor's own file has no word for it.

    Raises:
        VlmcError: What is said is neither true nor false.
    """
    said = image_processor_json.get("use_image_id")
    return said is None or _flag(image_processor_json, "use_image_id", at)
