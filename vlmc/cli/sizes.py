"""Sizes as people read and write them."""

import re

from vlmc.errors import VlmcError

_PICTURE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")


def size_text(count: int) -> str:
    """A number of bytes in the largest unit that leaves at least one, as in ``1.5 GiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def read_picture_size(text: str) -> tuple[int, int]:
    """``640x480`` as (width, height) in pixels.

    Raises:
        VlmcError: It is written otherwise.
    """
    found = _PICTURE.fullmatch(text)
    if found is None:
        message = f"'{text}' is not a picture size"
        raise VlmcError(message, at="--image-size", hint="write WIDTHxHEIGHT, as in 640x480")
    return int(found[1]), int(found[2])
