"""A picture as text: two pixels a character in colour, or shades without."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

_COLUMNS = 48
_SHADES = " .:-=+*#%@"


def blocks(picture: Image.Image, *, color: bool, columns: int = _COLUMNS) -> Text:
    """The picture, ``columns`` characters wide.

    Args:
        picture: Any mode.
        color: Whether the terminal has colours; shades of characters otherwise.
        columns: Width in characters; a character is twice as tall as it is wide.
    """
    import numpy as np
    from rich.text import Text

    rows = max(1, round(columns * picture.height / picture.width / 2))
    pixels = np.asarray(picture.convert("RGB").resize((columns, 2 * rows)))
    text = Text()
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            if color:
                text.append("▀", style=f"rgb({_rgb(above)}) on rgb({_rgb(below)})")
            else:
                light = (sum(above) + sum(below)) / (6 * 255)
                text.append(_SHADES[round((1 - light) * (len(_SHADES) - 1))])
        text.append("\n")
    return text


def _rgb(pixel: list[int]) -> str:
    return ",".join(map(str, pixel))
