"""Reads the JSON of image processors that cut pictures into patches near their own size."""

import numpy as np

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import (
    _AT,
    _CLIP_COLORS,
    _COMMON,
    _PLAIN_COLORS,
    _channels,
    _count,
    _flag,
    _number,
    _resample,
    _settings,
    _size,
    _values,
)
from vlmc.runtime.images import check_spec
from vlmc.schema import Json

_COSMOS = "Cosmos3EdgeImageProcessor"
_ERNIE = "Ernie4_5_VLMoeImageProcessor"
_HUNYUAN = "HunYuanVLImageProcessor"
_PADDLE = "PaddleOCRVLImageProcessor"
_GLM4V: Json = {
    **_COMMON,
    **_CLIP_COLORS,
    "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_GLM4V_CLASSES = {
    "Glm4vImageProcessor": _GLM4V,
    "Glm46VImageProcessor": _GLM4V,
    "GlmgaImageProcessor": {**_GLM4V, "patch_expand_factor": 1},
}
_QWEN2VL: Json = {
    **_COMMON,
    **_CLIP_COLORS,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
NATIVE_GRID_CLASSES: dict[str, Json] = {
    "Qwen2VLImageProcessor": _QWEN2VL,
    "CohereCompassImageProcessor": _QWEN2VL,
    "VideoLlama3ImageProcessor": {
        **_QWEN2VL,
        **_PLAIN_COLORS,
        "temporal_patch_size": 1,
        "merge_size": 1,
    },
    _PADDLE: {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536},
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 2,
    },
    **_GLM4V_CLASSES,
    _COSMOS: {
        **_COMMON,
        **_PLAIN_COLORS,
        "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
        "patch_size": 16,
        "temporal_patch_size": 1,
        "merge_size": 2,
    },
    _HUNYUAN: {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"shortest_edge": 512 * 512, "longest_edge": 2048 * 2048},
        "patch_size": 16,
        "temporal_patch_size": 1,
        "merge_size": 2,
    },
    _ERNIE: {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 6177},
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 2,
    },
}
WHOLE_PATCHES_CLASSES: dict[str, Json] = {
    "PixtralImageProcessor": {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"longest_edge": 1024},
        "default_to_square": True,
    }
}
NAFLEX_CLASSES: dict[str, Json] = {
    "Lfm2VlImageProcessor": {
        **_COMMON,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "do_convert_rgb": False,
        "downsample_factor": 2,
        "do_image_splitting": True,
        "min_tiles": 2,
        "max_tiles": 10,
        "use_thumbnail": True,
        "min_image_tokens": 64,
        "max_image_tokens": 256,
        "encoder_patch_size": 16,
        "tile_size": 512,
        "max_pixels_tolerance": 2.0,
    }
}


def native_grid_spec(
    image_processor_json: Json,
    *,
    at: str = _AT,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    window: int | None = None,
    table: Json | None = None,
    spread: int | None = None,
    centers: bool = False,
    raster: bool = False,
    row_ends: bool = False,
) -> ImageSpec:
    """The ``native_grid`` geometry of the image processor of Qwen2-VL or one of its kin.

    Args:
        image_processor_json: As for ``fixed_spec``.
        at: The file, for errors.
        min_pixels: The recipe's own bound, in the place of the processor's.
        max_pixels: The same.
        window: The side, in patches, of the tower's attention windows, where it has them.
        table: The tower's learned positions (``PositionTable``), where it has them.
        spread: The side of a table of which a patch may take more than a few.
        centers: Whether a merged patch is read in its middle alone.
        raster: Whether the tower has to know which patch lies where.
        row_ends: Whether the tower makes rows for the ends of rows, too.

    Raises:
        VlmcError: Another class, a value its class cannot use, or bounds that exclude each other.
    """
    name, values = _settings(image_processor_json, NATIVE_GRID_CLASSES, at)
    if values.get("patch_expand_factor", 1) != 1:
        raise VlmcError(
            "with Pillow transformers leaves it out, with torchvision it does not",
            at=f"{at}: patch_expand_factor",
        )
    if name in _GLM4V_CLASSES or name in (_COSMOS, _ERNIE):  # they read the sizes alone
        values = {key: values[key] for key in values.keys() - {"min_pixels", "max_pixels"}}
    least, most = _pixel_bounds(values, at)
    least = least if min_pixels is None else min_pixels
    most = most if max_pixels is None else max_pixels
    if least > most:
        raise VlmcError(
            f"the smallest picture ({least} pixels) is larger than the largest ({most})",
            at=at if min_pixels is None and max_pixels is None else "images",
            hint="set both images.min-pixels and images.max-pixels in the recipe",
        )
    options: Json = {
        "patch_size": _count(values["patch_size"], f"{at}: patch_size"),
        "temporal_patch_size": _count(values["temporal_patch_size"], f"{at}: temporal_patch_size"),
        "merge_size": _count(values["merge_size"], f"{at}: merge_size"),
        "resize": _flag(values, "do_resize", at),
        "min_pixels": _count(least, "images.min-pixels"),
        "max_pixels": _count(most, "images.max-pixels"),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    if name in _GLM4V_CLASSES or name == _COSMOS:
        options |= {"frames": options["temporal_patch_size"], "enlarge": "scaled"}
    if name == _HUNYUAN:
        if values.get("spatial_patch_size", 1) != 1:
            raise VlmcError("the processor counts other tokens", at=f"{at}: spatial_patch_size")
        options["resample"] = "bicubic"  # whatever the file says
    if name == _PADDLE:
        options["enlarge"] = "side"
    sizes = {"window": window, "table": table, "spread": spread}
    options |= {key: value for key, value in sizes.items() if value is not None}
    flags = {"channels_last": name == _COSMOS, "centers": centers, "raster": raster}
    options |= {key: True for key, on in (flags | {"row_ends": row_ends}).items() if on}
    return check_spec(ImageSpec(geometry="native_grid", options=options), at=at)


def whole_patches_spec(
    image_processor_json: Json, patch: int, merge: int, *, at: str = _AT
) -> ImageSpec:
    """The ``whole_patches`` geometry of a Pixtral image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        patch: The side of the tower's patches, in pixels.
        merge: The side of a feature row, in patches.
        at: The file, for errors.

    Raises:
        VlmcError: Another class, or a value its class cannot use.
    """
    _, values = _settings(image_processor_json, WHOLE_PATCHES_CLASSES, at)
    if _flag(values, "do_center_crop", at):
        raise VlmcError("pictures are not cropped here", at=f"{at}: do_center_crop")
    size = _size(values, "size", at, square=_flag(values, "default_to_square", at))
    longest = size.get("longest_edge")
    if longest is None and "height" not in size:
        allowed = ("longest_edge", "height and width")
        raise VlmcError("pictures cannot be bounded by that", at=f"{at}: size", allowed=allowed)
    options: Json = {
        "patch_size": patch,
        "merge_size": merge,
        "max_height": longest or size["height"],
        "max_width": longest or size["width"],
        "resize": _flag(values, "do_resize", at),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "values": _values(values, at),
    }
    return check_spec(ImageSpec(geometry="whole_patches", options=options), at=at)


def naflex_spec(
    image_processor_json: Json,
    patch: int,
    merge: int,
    side: int,
    *,
    at: str = _AT,
    max_tiles: int | None = None,
) -> ImageSpec:
    """The ``naflex`` geometry of an LFM2-VL image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        patch: The side of the tower's patches, in pixels.
        merge: The side of a feature row, in patches.
        side: Positions along a side of the tower's table.
        at: The file, for errors.
        max_tiles: The recipe's own bound, in the place of the processor's.

    Raises:
        VlmcError: Another class, a value its class cannot use, or another size of patches.
    """
    _, values = _settings(image_processor_json, NAFLEX_CLASSES, at)
    for key, wanted in (("encoder_patch_size", patch), ("downsample_factor", merge)):
        size = _count(values[key], f"{at}: {key}")
        if size != wanted:
            raise VlmcError(f"the processor's {key} is {size}, the model's {wanted}", at=at)
    if not _flag(values, "do_rescale", at) or not _flag(values, "do_normalize", at):
        raise VlmcError("pictures are always rescaled and normalized here", at=at)
    scale = 1.0 / _number(values["rescale_factor"], f"{at}: rescale_factor")
    mean, std = (
        [float(np.float32(one) * np.float32(scale)) for one in _channels(values, key, at)]
        for key in ("image_mean", "image_std")
    )
    most = values["max_tiles"] if max_tiles is None else max_tiles
    cut = _flag(values, "do_image_splitting", at) and most != 1
    options: Json = {
        "patch_size": patch,
        "merge_size": merge,
        "min_tokens": values["min_image_tokens"],
        "max_tokens": values["max_image_tokens"],
        "tolerance": values["max_pixels_tolerance"],
        "tile": values["tile_size"] if cut else None,
        "min_tiles": values["min_tiles"],
        "max_tiles": most,
        "whole": _flag(values, "use_thumbnail", at),
        "resample": _resample(values, at),
        "on_white": _flag(values, "do_convert_rgb", at),
        "mean": mean,
        "std": std,
        "side": side,
    }
    spec = ImageSpec(geometry="naflex", options=options)
    return check_spec(spec, at=at if max_tiles is None else "images.max-tiles")


def _pixel_bounds(values: Json, at: str) -> tuple[int, int]:
    """The bounds of a picture's area, which ``size`` calls edges."""
    size = dict(_size(values, "size", at, square=False))
    bounds: list[int] = []
    for edge, key in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        bound = values.get(key, size.get(edge, size.get(key)))
        if bound is None:
            raise VlmcError(f"{key} is not given", at=at)
        bounds.append(_count(bound, f"{at}: {key}"))
    return bounds[0], bounds[1]
