"""Reads the JSON of transformers' image processors, as those classes read it."""

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.runtime.images import check_spec, vision_inputs
from vlmc.schema import Json, lookup

_AT = "preprocessor_config.json"

RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters by their number in a processor's JSON."""

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

_JANUS: Json = {
    **_COMMON,
    **_CLIP_COLORS,
    "size": {"height": 384, "width": 384},
    "min_size": 14,
    "do_pad": True,
    "do_convert_rgb": False,
    "default_to_square": True,
}

_VIDEO_LLAVA = "VideoLlavaImageProcessor"
# The classes served by each geometry, with their attributes: the defaults for absent keys.
FIXED_CLASSES: dict[str, Json] = {
    "BlipImageProcessor": {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"height": 384, "width": 384},
        "default_to_square": True,
    },
    "CLIPImageProcessor": _CLIP,
    "ChameleonImageProcessor": {
        **_CLIP,
        "resample": 1,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
        "size": {"shortest_edge": 512},
        "crop_size": {"height": 512, "width": 512},
        "rescale_factor": 0.0078,
    },
    "Gemma3ImageProcessor": {**_SIGLIP, "resample": 2, "default_to_square": True},
    "LlavaImageProcessor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
    _VIDEO_LLAVA: _CLIP,
    "DeepseekVLImageProcessor": _JANUS,
    "GotOcr2ImageProcessor": {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"height": 384, "width": 384},
        "default_to_square": True,
    },
    "JanusImageProcessor": _JANUS,
    "PPChart2TableImageProcessor": {
        **_COMMON,
        **_CLIP_COLORS,
        "size": {"height": 1024, "width": 1024},
        "do_convert_rgb": False,
        "default_to_square": True,
    },
    "ViTImageProcessor": {
        **_SIGLIP,
        "resample": 2,
        "do_convert_rgb": False,
        "default_to_square": True,
    },
}
# Steps that a class does not have, whatever its file says.
_STEPS_LEFT_OUT = {
    "DeepseekVLImageProcessor": ("do_center_crop",),
    "Gemma3ImageProcessor": ("do_center_crop", "do_pad"),
    "GotOcr2ImageProcessor": ("do_center_crop", "do_pad"),
    "JanusImageProcessor": ("do_center_crop",),
    _VIDEO_LLAVA: ("do_pad",),
}
_SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
    {"min_pixels", "max_pixels"},
)


def fixed_spec(
    image_processor_json: Json, tokens: int, *, at: str = _AT, image_size: int | None = None
) -> ImageSpec:
    """The ``fixed`` geometry of an image processor of ``FIXED_CLASSES``.

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
    name, values = _settings(image_processor_json, FIXED_CLASSES, at)
    if name == "CLIPImageProcessor" and values.get("use_square_size"):
        values["size"] = {"height": 224, "width": 224}  # an old spelling of KOSMOS-2
    if name == _VIDEO_LLAVA:
        values["size"] = _plain_size(values, at)
    values |= dict.fromkeys(_STEPS_LEFT_OUT.get(name, ()), False)
    padded = _flag(values, "do_pad", at)
    square = padded and name == "LlavaImageProcessor"
    boxed = FIXED_CLASSES[name] is _JANUS
    options: Json = {
        "tokens": tokens,
        "on_white": _flag(values, "do_convert_rgb", at),
        "square": _background(values, at) if square else None,
        "resize": _resize(values, at) if _flag(values, "do_resize", at) else None,
        "boxed": _background(values, at) if padded and boxed else None,
        "resample": _resample(values, at),
        "crop": _box(values, "crop_size", at) if _flag(values, "do_center_crop", at) else None,
        "values": _values(values, at),
        # Without a size, a picture is padded to the largest of its batch: itself.
        "pad": _box(values, "pad_size", at)
        if padded and not square and not boxed and "pad_size" in values
        else None,
    }
    spec = check_spec(ImageSpec(geometry="fixed", options=options), at=at)
    height, width = vision_inputs(spec)[0].shape[-2:]
    if image_size is not None:
        check_side({"height": height, "width": width}, image_size, at)
    return spec


def check_side(size: Json, side: int, at: str) -> None:
    """Refuses pictures of another size than the tower takes.

    Raises:
        VlmcError: Height or width is not ``side``.
    """
    height, width = size["height"], size["width"]
    if not height == width == side:
        raise VlmcError(
            f"the processor makes pictures of {width} x {height} pixels, "
            f"the vision tower takes {side} x {side}",
            at=at,
        )


def _settings(found: Json, classes: dict[str, Json], at: str) -> tuple[str, Json]:
    """The class named in the JSON, and its settings with the class's own filled in."""
    name = found.get("image_processor_type")
    if name is None and isinstance(old := found.get("feature_extractor_type"), str):
        name = old.replace("FeatureExtractor", "ImageProcessor")
    if not isinstance(name, str):
        raise VlmcError("the class of the image processor is not named", at=at, allowed=classes)
    name = name.removesuffix("Fast").removesuffix("Pil")
    defaults = lookup(classes, name, kind="image processor", at=f"{at}: image_processor_type")
    return name, {**defaults, **{key: value for key, value in found.items() if value is not None}}


def _flag(values: Json, key: str, at: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise VlmcError(f"{value!r} is neither true nor false", at=f"{at}: {key}")
    return value


def _count(value: object, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VlmcError(f"{value!r} is not a positive whole number", at=at)
    return value


def _number(value: object, at: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise VlmcError(f"{value!r} is not a number", at=at)
    return value


def _channels(values: Json, key: str, at: str) -> list[float]:
    """One number per channel; a single number stands for all three."""
    value = values[key]
    if not isinstance(value, list):
        return [_number(value, f"{at}: {key}")] * 3
    if len(value) != 3:
        raise VlmcError(f"{len(value)} numbers for the 3 channels", at=f"{at}: {key}")
    return [_number(one, f"{at}: {key}") for one in value]


def _values(values: Json, at: str) -> Json:
    mean = std = rescale = None
    if _flag(values, "do_rescale", at):
        rescale = _number(values["rescale_factor"], f"{at}: rescale_factor")
    if _flag(values, "do_normalize", at):
        mean, std = _channels(values, "image_mean", at), _channels(values, "image_std", at)
    return {"rescale": rescale, "mean": mean, "std": std}


def _background(values: Json, at: str) -> list[int]:
    """LLaVA pads with the mean color, whether or not it normalizes."""
    levels = [level * 255 for level in _channels(values, "image_mean", at)]
    if not all(-1 < level < 256 for level in levels):
        raise VlmcError(f"{levels} is not a color to pad with", at=f"{at}: image_mean")
    return [int(level) for level in levels]


def _resample(values: Json, at: str) -> str:
    value = values["resample"]
    if type(value) is not int or value not in range(len(RESAMPLES)):
        allowed = [f"{number} ({name})" for number, name in enumerate(RESAMPLES)]
        raise VlmcError(f"{value!r} is no filter", at=f"{at}: resample", allowed=allowed)
    return RESAMPLES[value]


def _size(values: Json, key: str, at: str, *, square: bool) -> dict[str, int]:
    """A size as ``get_size_dict`` reads it: a mapping, one number, or a height and a width."""
    value, at = values.get(key), f"{at}: {key}"
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if not isinstance(value, dict) or set(value) not in _SIZE_KEYS:
        allowed = [" and ".join(sorted(keys)) for keys in _SIZE_KEYS]
        raise VlmcError(f"{value!r} is no size", at=at, allowed=allowed)
    return {str(name): _count(length, f"{at}.{name}") for name, length in value.items()}


def _plain_size(values: Json, at: str) -> Json:
    """As Video-LLaVA reads it: the shortest edge alone, whatever the longest, or both sides."""
    size: Json = {**_size(values, "size", at, square=False)}
    if "shortest_edge" in size:
        return {"shortest_edge": size["shortest_edge"]}
    if "height" not in size and _flag(values, "do_resize", at):
        raise VlmcError(
            f"pictures cannot be resized by {' and '.join(size)} here",
            at=f"{at}: size",
            allowed=("height and width", "shortest_edge"),
        )
    return size


def _box(values: Json, key: str, at: str) -> Json:
    size = _size(values, key, at, square=True)
    if "height" not in size:
        raise VlmcError(f"{size} has no height and width", at=f"{at}: {key}")
    return {**size}


def _resize(values: Json, at: str) -> Json:
    size = _size(values, "size", at, square=_flag(values, "default_to_square", at))
    if "min_size" in values:
        if len(set(size.values())) != 1 or "height" not in size:
            raise VlmcError(f"{size} is no square", at=f"{at}: size")
        return {"longest": size["height"], "least": _count(values["min_size"], f"{at}: min_size")}
    if "shortest_edge" in size:
        return {"shortest": size["shortest_edge"], "longest": size.get("longest_edge")}
    if "height" in size or "max_height" in size:
        return {**size}
    raise VlmcError(
        f"pictures cannot be resized by {' and '.join(size)} here",
        at=f"{at}: size",
        allowed=("height and width", "shortest_edge", "max_height and max_width"),
    )
