"""What every geometry does to pixels: to RGB, to a size, to floats."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field, model_validator

from vlmc.errors import VlmcError
from vlmc.schema import Frozen

MAX_PIXELS = 89_478_485
"""Pixels a picture may have, read or resized: Pillow's own bound, 256 MiB of RGB."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
RGB = tuple[float, float, float]
Level = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Level, Level, Level]


class Values(Frozen):
    """How the 256 levels of a channel become floats: ``(level * rescale - mean) / std``.

    ``rescale`` or ``mean`` and ``std`` (always together) may be left out. ``fused``: rounded as
    transformers' torchvision processors do.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    rescale: float | None
    mean: RGB | None
    std: RGB | None
    fused: bool = False

    @model_validator(mode="after")
    def _usable(self) -> "Values":
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together or not at all")
        if not np.isfinite(table(self)).all():
            raise ValueError("rescale, mean and std make infinite values of some pixels")
        return self


def table(values: Values) -> NDArray[np.float32]:
    """The float of every level, float32 [3, 256].

    A picture is 8-bit at this point, so the arithmetic is done on 256 levels instead of millions
    of pixels. Mirrors ``rescale`` and ``normalize`` of ``transformers.image_transforms``: the
    product in float64, then float32, not fused with the normalization.
    """
    levels = np.arange(256, dtype=np.float32)
    if values.fused:
        return _fused(levels, values)
    with np.errstate(all="ignore"):  # `Values` refuses constants that overflow
        if values.rescale is not None:
            levels = (levels.astype(np.float64) * values.rescale).astype(np.float32)
        rows = np.repeat(levels[None], 3, axis=0)
        if values.mean is not None and values.std is not None:
            mean = np.array(values.mean, dtype=np.float32)[:, None]
            std = np.array(values.std, dtype=np.float32)[:, None]
            rows = (rows - mean) / std
    return rows


def _fused(levels: NDArray[np.float32], values: Values) -> NDArray[np.float32]:
    """Mirrors ``TorchvisionBackend.rescale_and_normalize``: float32 throughout."""
    rescale = values.rescale
    with np.errstate(all="ignore"):
        if values.mean is None or values.std is None:
            rows = levels if rescale is None else levels * np.float32(rescale)
            return np.repeat(rows[None], 3, axis=0)
        mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (values.mean, values.std))
        if rescale is not None:
            unit = np.float32(np.divide(1.0, rescale))
            mean, std = mean * unit, std * unit
        rows = (levels - mean) / std
    return rows


def floats(picture: NDArray[np.uint8], values: Values) -> NDArray[np.float32]:
    """``picture`` uint8 [H, W, 3] as float32 [3, H, W]."""
    made = np.empty((3, *picture.shape[:2]), dtype=np.float32)
    for channel, levels in enumerate(table(values)):
        made[channel] = levels[picture[..., channel]]
    return made


def rgb(image: Image.Image, *, on_white: bool) -> Image.Image:
    """The picture in RGB, transparent parts laid on white or, if not, shown as stored.

    Mirrors ``convert_to_rgb`` of ``transformers.image_transforms`` (``on_white``), and ``convert``
    alone otherwise. The result may be ``image`` itself.
    """
    # A transparent color outlives the conversion to RGB, so a loaded picture may still have one.
    if on_white and ("A" in image.getbands() or image.info.get("transparency") is not None):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def resized(image: Image.Image, height: int, width: int, resample: Resample) -> Image.Image:
    """The picture at a new size; mirrors ``resize`` of ``transformers.image_transforms``."""
    return image.resize((width, height), Image.Resampling[resample.upper()])


def squared(image: Image.Image, color: Color) -> Image.Image:
    """The picture in the middle of a square; mirrors ``LlavaImageProcessorPil.pad_to_square``."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def size_text(height: int, width: int) -> str:
    """A size as people write it, width first."""
    return f"{width} x {height} pixels"


def check_target(height: int, width: int, new_height: int, new_width: int) -> None:
    """Refuses a size no picture of ``height`` x ``width`` pixels can be brought to.

    Raises:
        VlmcError: The new size is empty, or has more than ``MAX_PIXELS`` pixels.
    """
    if new_height < 1 or new_width < 1:
        raise VlmcError(
            f"a picture of {size_text(height, width)} is too narrow for this model: "
            f"resized, nothing of it would be left ({size_text(new_height, new_width)})"
        )
    if new_height * new_width > MAX_PIXELS:
        raise VlmcError(
            f"a picture of {size_text(height, width)} is too narrow for this model: "
            f"it would grow to {size_text(new_height, new_width)}; the limit is {MAX_PIXELS} pixels"
        )
