"""Typed values out of an image processor's JSON, as transformers reads them.

Every function raises ``VlmcError``, with the key's place, for a value that makes no sense.
"""

from vlmc.errors import VlmcError
from vlmc.schema import Json, lookup

RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters by their number in a processor's JSON."""

_SIZE_KEYS = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"longest_edge"},
    {"max_height", "max_width"},
    {"min_pixels", "max_pixels"},
)


def read_settings(found: Json, classes: dict[str, Json], at: str) -> tuple[str, Json]:
    """The class named in the JSON, and its settings with the class's own filled in."""
    name = found.get("image_processor_type")
    if name is None and isinstance(old := found.get("feature_extractor_type"), str):
        name = old.replace("FeatureExtractor", "ImageProcessor")
    if not isinstance(name, str):
        raise VlmcError("the class of the image processor is not named", at=at, allowed=classes)
    name = name.removesuffix("Fast").removesuffix("Pil")
    defaults = lookup(classes, name, kind="image processor", at=f"{at}: image_processor_type")
    return name, {**defaults, **{key: value for key, value in found.items() if value is not None}}


def read_flag(values: Json, key: str, at: str) -> bool:
    """True or false; false where it is absent."""
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise VlmcError(f"{value!r} is neither true nor false", at=f"{at}: {key}")
    return value


def read_count(value: object, at: str) -> int:
    """A positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VlmcError(f"{value!r} is not a positive whole number", at=at)
    return value


def read_number(value: object, at: str) -> float:
    """A number, whole or not."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise VlmcError(f"{value!r} is not a number", at=at)
    return value


def read_channels(values: Json, key: str, at: str) -> list[float]:
    """One number per channel; a single number stands for all three."""
    value = values[key]
    if not isinstance(value, list):
        return [read_number(value, f"{at}: {key}")] * 3
    if len(value) != 3:
        raise VlmcError(f"{len(value)} numbers for the 3 channels", at=f"{at}: {key}")
    return [read_number(one, f"{at}: {key}") for one in value]


def read_values(values: Json, at: str) -> Json:
    """How levels become floats: ``rescale``, ``mean`` and ``std`` of ``pixels.Values``."""
    mean = std = rescale = None
    if read_flag(values, "do_rescale", at):
        rescale = read_number(values["rescale_factor"], f"{at}: rescale_factor")
    if read_flag(values, "do_normalize", at):
        mean, std = read_channels(values, "image_mean", at), read_channels(values, "image_std", at)
    return {"rescale": rescale, "mean": mean, "std": std}


def read_background(values: Json, at: str) -> list[int]:
    """LLaVA pads with the mean color, whether or not it normalizes."""
    color = [int(level * 255) for level in read_channels(values, "image_mean", at)]
    if min(color) < 0 or max(color) > 255:
        raise VlmcError(f"{color} is not a color to pad with", at=f"{at}: image_mean")
    return color


def read_resample(values: Json, at: str) -> str:
    """The name of the filter."""
    value = values["resample"]
    if type(value) is not int or value not in range(len(RESAMPLES)):
        allowed = [f"{number} ({name})" for number, name in enumerate(RESAMPLES)]
        raise VlmcError(f"{value!r} is no filter", at=f"{at}: resample", allowed=allowed)
    return RESAMPLES[value]


def read_size(values: Json, key: str, at: str, *, square: bool) -> dict[str, int]:
    """A size as ``get_size_dict`` reads it: a mapping, one number, or a height and a width."""
    value, at = values.get(key), f"{at}: {key}"
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, int):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if not isinstance(value, dict) or set(value) not in _SIZE_KEYS:
        allowed = [" and ".join(sorted(keys)) for keys in _SIZE_KEYS]
        raise VlmcError(f"{value!r} is no size", at=at, allowed=allowed)
    return {str(name): read_count(length, f"{at}.{name}") for name, length in value.items()}


def read_box(values: Json, key: str, at: str) -> Json:
    """A size that has a height and a width."""
    size = read_size(values, key, at, square=True)
    if "height" not in size:
        raise VlmcError(f"{size} has no height and width", at=f"{at}: {key}")
    return {**size}


def read_resize(values: Json, at: str) -> Json:
    """The ``resize`` of ``fixed.Options``."""
    size = read_size(values, "size", at, square=read_flag(values, "default_to_square", at))
    if "shortest_edge" in size:
        return {"shortest": size["shortest_edge"], "longest": size.get("longest_edge")}
    if "height" in size or "max_height" in size:
        return {**size}
    raise VlmcError(
        f"pictures cannot be resized by {' and '.join(size)} here",
        at=f"{at}: size",
        allowed=("height and width", "shortest_edge", "max_height and max_width"),
    )


def read_pixel_bounds(values: Json, at: str) -> tuple[int, int]:
    """The bounds of a picture's area, which ``size`` calls edges."""
    size = dict(read_size(values, "size", at, square=False))
    bounds: list[int] = []
    for edge, key in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        bound = values.get(key, size.get(edge, size.get(key)))
        if bound is None:
            raise VlmcError(f"{key} is not given", at=at)
        bounds.append(read_count(bound, f"{at}: {key}"))
    return bounds[0], bounds[1]
