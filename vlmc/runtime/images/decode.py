"""Safe decoding: a file, its content or a picture, to RGB or to one clear error."""

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from vlmc.errors import VlmcError
from vlmc.runtime.images.pixels import MAX_PIXELS, size_text

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_ONE_AT_A_TIME = threading.Lock()


def open_image(
    source: str | Path | bytes | Image.Image, *, at: str, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decodes a picture, upright and in RGB; of an animation, the first frame.

    Mirrors ``transformers.image_utils.load_image`` for a path, whatever the source: the EXIF
    orientation is applied, then ``convert("RGB")``, which drops transparency. Two departures:
    nothing is fetched, and damaged EXIF data, on which it may fail, is ignored.

    Args:
        source: A file's path, a file's content, or a picture, which is left as it is.
        at: The place the picture came from, for errors.
        max_pixels: The most pixels (width x height) the header may announce.

    Raises:
        VlmcError: No such file, another format, damaged, empty, or too large.
    """
    if isinstance(source, Image.Image):
        with _quiet():
            return _decoded(source, "the picture", at, max_pixels)
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the picture", at, max_pixels)
    # A path, as the command line makes of every word, has lost the second slash.
    if str(source).startswith(("http:/", "https:/", "data:")):
        raise VlmcError("pictures are read from files, not from addresses", at=at)
    try:
        if not Path(source).is_file():
            problem = "is not a file" if Path(source).exists() else "does not exist"
            raise VlmcError(f"'{source}' {problem}", at=at)
        with Path(source).open("rb") as file:
            return _read(file, f"'{source}'", at, max_pixels)
    except OSError as error:
        raise VlmcError(f"cannot read '{source}': {error.strerror}", at=at) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's warnings, of large and of damaged files, from users."""
    # Warning filters belong to the whole process: two threads changing them would mix them up.
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(file: IO[bytes], name: str, at: str, max_pixels: int) -> Image.Image:
    with _quiet():
        try:
            image = Image.open(file, formats=FORMATS)  # the header only
        except Exception as error:
            raise _refusal(error, name, at, max_pixels) from error
        with image:
            return _decoded(image, name, at, max_pixels)


def _decoded(image: Image.Image, name: str, at: str, max_pixels: int) -> Image.Image:
    if min(image.size) < 1:
        raise VlmcError(f"{name} has no pixels", at=at)
    if image.width * image.height > max_pixels:
        size = size_text(image.height, image.width)
        raise VlmcError(f"{name} has {size}: too large, the limit is {max_pixels}", at=at)
    try:
        image.load()
        upright = _upright(image)
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    except Exception as error:
        raise _refusal(error, name, at, max_pixels) from error


def _upright(image: Image.Image) -> Image.Image:
    """A copy, turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ):  # what Pillow raises on EXIF data that makes no sense; the pixels are fine
        return image.copy()


def _refusal(error: Exception, name: str, at: str, max_pixels: int) -> VlmcError:
    """What to say of a file a decoder failed on.

    A hostile file can make a decoder raise anything, and its words may hold memory addresses: so
    every exception is taken, and none of its text is shown.
    """
    if isinstance(error, Image.DecompressionBombError):
        return VlmcError(f"{name} is too large: the limit is {max_pixels} pixels", at=at)
    if isinstance(error, UnidentifiedImageError):
        return VlmcError(f"{name} is not a picture of a known format", at=at, allowed=FORMATS)
    return VlmcError(f"{name} is damaged or cut short: it cannot be decoded", at=at)
