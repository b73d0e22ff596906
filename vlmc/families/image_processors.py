"""Reads the JSON of transformers' image processors, as those classes read it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.processor_values import (
    read_background,
    read_box,
    read_count,
    read_flag,
    read_pixel_bounds,
    read_resample,
    read_resize,
    read_settings,
    read_size,
    read_values,
)
from vlmc.runtime.images import check_spec, vision_inputs
from vlmc.schema import Json

_AT = "preprocessor_config.json"

_PINPOINTS = "image_grid_pinpoints"
_COMMON: Json = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "default_to_square": False,
}
_CLIP_COLORS: Json = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_PLAIN_COLORS: Json = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP: Json = {
    **_COMMON,
    **_CLIP_COLORS,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
}
_SIGLIP: Json = {**_COMMON, **_PLAIN_COLORS, "size": {"height": 224, "width": 224}}

# The classes served by each geometry, with their attributes: the defaults for absent keys.
FIXED_CLASSES: dict[str, Json] = {
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    "ViTImageProcessor": {
        **_SIGLIP,
        "resample": 2,
        "do_convert_rgb": False,
        "default_to_square": True,
    },
}
NATIVE_GRID_CLASSES: dict[str, Json] = {
    "Qwen2VLImageProcessor": {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
}

ANYRES_CLASSES: dict[str, Json] = {
    "LlavaNextImageProcessor": {
        **_CLIP,
        "do_pad": True,
        _PINPOINTS: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    }
}

_TILE_KEYS = ({"height", "width"}, {"shortest_edge"})


def fixed_spec(
    image_processor_json: Json, tokens: int, *, at: str = _AT, image_size: int | None = None
) -> ImageSpec:
    """The ``fixed`` geometry of a CLIP, SigLIP, LLaVA or ViT image processor.

    Args:
        image_processor_json: ``preprocessor_config.json``, or the ``image_processor`` section of
            ``processor_config.json``.
        tokens: Feature rows the vision tower makes of every picture.
        at: The file, for errors.
        image_size: The side of the square picture the vision tower takes, to be checked.

    Raises:
        VlmcError: Another class, a value its class cannot use, or pictures of varying size or of
            another size than the tower takes.
    """
    name, values = read_settings(image_processor_json, FIXED_CLASSES, at)
    if name == "CLIPImageProcessor" and values.get("use_square_size"):
        values["size"] = {"height": 224, "width": 224}  # an old spelling of KOSMOS-2
    padded = read_flag(values, "do_pad", at)
    square = padded and name == "LlavaImageProcessor"
    options: Json = {
        "tokens": tokens,
        "on_white": read_flag(values, "do_convert_rgb", at),
        "square": read_background(values, at) if square else None,
        "resize": read_resize(values, at) if read_flag(values, "do_resize", at) else None,
        "resample": read_resample(values, at),
        "crop": read_box(values, "crop_size", at)
        if read_flag(values, "do_center_crop", at)
        else None,
        "values": read_values(values, at),
        # Without a size, a picture is padded to the largest of its batch: itself.
        "pad": read_box(values, "pad_size", at)
        if padded and not square and "pad_size" in values
        else None,
    }
    spec = check_spec(ImageSpec(geometry="fixed", options=options), at=at)
    height, width = vision_inputs(spec)[0].shape[-2:]
    if image_size is not None and not height == width == image_size:
        raise VlmcError(
            f"the processor makes pictures of {width} x {height} pixels, "
            f"the vision tower takes {image_size} x {image_size}",
            at=at,
        )
    return spec


def native_grid_spec(
    image_processor_json: Json,
    *,
    at: str = _AT,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> ImageSpec:
    """The ``native_grid`` geometry of a Qwen2-VL image processor.

    Args:
        image_processor_json: As for ``fixed_spec``.
        at: The file, for errors.
        min_pixels: The recipe's own bound, in the place of the processor's.
        max_pixels: The same.

    Raises:
        VlmcError: Another class, a value its class cannot use, or bounds that exclude each other.
    """
    _, values = read_settings(image_processor_json, NATIVE_GRID_CLASSES, at)
    least, most = read_pixel_bounds(values, at)
    least = least if min_pixels is None else min_pixels
    most = most if max_pixels is None else max_pixels
    if least > most:
        raise VlmcError(
            f"the smallest picture ({least} pixels) is larger than the largest ({most})",
            at=at if min_pixels is None and max_pixels is None else "images",
            hint="set both images.min-pixels and images.max-pixels in the recipe",
        )
    options: Json = {
        "patch_size": read_count(values["patch_size"], f"{at}: patch_size"),
        "temporal_patch_size": read_count(
            values["temporal_patch_size"], f"{at}: temporal_patch_size"
        ),
        "merge_size": read_count(values["merge_size"], f"{at}: merge_size"),
        "resize": read_flag(values, "do_resize", at),
        "min_pixels": read_count(least, "images.min-pixels"),
        "max_pixels": read_count(most, "images.max-pixels"),
        "resample": read_resample(values, at),
        "on_white": read_flag(values, "do_convert_rgb", at),
        "values": read_values(values, at),
    }
    return check_spec(ImageSpec(geometry="native_grid", options=options), at=at)


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
    _, values = read_settings(image_processor_json, ANYRES_CLASSES, at)
    size = read_size(values, "size", at, square=read_flag(values, "default_to_square", at))
    crop = read_box(values, "crop_size", at)
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
        "resample": read_resample(values, at),
        "on_white": read_flag(values, "do_convert_rgb", at),
        "values": read_values(values, at),
    }
    return check_spec(ImageSpec(geometry="anyres", options=options), at=at)
