"""Pictures of many kinds and shapes, drawn from a seed."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., Image.Image]


def draw_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise on a gradient: it shows every rounding, and no two pixels alike."""
    rng = np.random.default_rng(zlib.crc32(f"{width} {height} {mode} {seed}".encode()))
    ramp = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise = rng.integers(0, 56, (height, width, 4))
    levels = (ramp + noise).astype(np.uint8)
    levels[..., 3] = rng.choice([0, 1, 127, 254, 255], (height, width))
    if mode == "I;16":
        return Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        dtype = np.int32 if mode == "I" else np.float32
        return Image.fromarray(levels[..., 0].astype(dtype) * 3 - 100)
    picture = Image.fromarray(levels, "RGBA")
    if mode == "P":
        return picture.convert("RGB").quantize(16)
    if mode == "PA":
        return picture.convert("P").convert("PA")
    if mode in ("RGBA", "LA"):
        return picture.convert(mode)
    return picture.convert("RGB").convert(mode)


@pytest.fixture(scope="session")
def draw() -> Draw:
    return draw_picture


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture to a file of its own."""

    def write(picture: Image.Image, name: str, **options: object) -> Path:
        path = tmp_path / name
        picture.save(path, **options)
        return path

    return write
