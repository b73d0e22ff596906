"""The questions a model is calibrated with: built in, or a file of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmc.bundle.store import canonical_json
from vlmc.errors import VlmcError
from vlmc.runtime.images import open_image
from vlmc.runtime.messages import parse_messages
from vlmc.schema import Json

if TYPE_CHECKING:
    from PIL import Image

# Every question reads a large checkpoint once more: the larger, the fewer are asked.
_COUNTS = ((256 << 20, 8), (4 << 30, 5))
_FEWEST = 3

# Text, and the seed and size (width, height) of a picture. The first ones must do for all.
_BUILT_IN: tuple[tuple[str, tuple[int, int, int] | None], ...] = (
    ("Describe this picture in detail: what is in it, where, and in which colours?", (1, 224, 160)),
    (
        "Summarize in two sentences: In 1869 the railway reached the coast, 3,075 km away; prices "
        "fell by 40 %, and the towns between doubled. Was everyone better off? Why not?",
        None,
    ),
    ("Read all the text and numbers you can find here.", (2, 160, 224)),
    ("def mean(xs: list[float]) -> float:\n    # What is wrong here?\n    return sum(xs)", None),
    ("How many objects are there, and which is the largest?", (3, 320, 96)),
    ("Übersetze ins Englische: »Wo ist der Bahnhof?« 请用中文回答。 Merci !", None),
    ("Is this a photograph, a drawing or a chart? Answer with one word.", (4, 128, 128)),
    ("What has changed between the left and the right half?", (5, 192, 256)),
)


@dataclass(frozen=True)
class Asked:
    """One question: chat messages of image and text parts, and their pictures in order."""

    messages: tuple[Json, ...]
    pictures: tuple[Image.Image, ...] = ()


def built_in(checkpoint_bytes: int) -> tuple[Asked, ...]:
    """The questions for a checkpoint of that size."""
    count = next((n for limit, n in _COUNTS if checkpoint_bytes <= limit), _FEWEST)
    asked = []
    for text, drawn in _BUILT_IN[:count]:
        images: list[Json] = [{"type": "image"}] if drawn else []
        content = [*images, {"type": "text", "text": text}]
        pictures = (_picture(*drawn),) if drawn else ()
        asked.append(Asked(({"role": "user", "content": content},), pictures))
    return tuple(asked)


def read_calibration(path: Path) -> tuple[Asked, ...]:
    """A file's questions: one JSON list of messages a line, pictures relative to the file.

    Raises:
        VlmcError: The file cannot be read, or a line is not messages, or a picture is not one.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise VlmcError(f"cannot read it: {error.strerror}", at=str(path)) from error
    asked = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        at = f"{path}:{number}"
        messages, sources = parse_messages(line, folder=path.parent, at=at)
        pictures = (open_image(s.path or s.data or b"", at=s.at) for s in sources)
        asked.append(Asked(tuple(map(_in_parts, messages)), tuple(pictures)))
    if not asked:
        raise VlmcError(
            "there is no question",
            at=str(path),
            hint='write one a line: [{"role": "user", "content": "..."}]',
        )
    return tuple(asked)


def digests(asked: Sequence[Asked]) -> list[str]:
    """What the questions are, for a cache key: a change of any pixel or word shows."""
    return [
        sha256(
            b"\0".join(
                [
                    canonical_json({"messages": list(one.messages)}),
                    *(repr(p.size).encode() + p.tobytes() for p in one.pictures),
                ]
            )
        ).hexdigest()
        for one in asked
    ]


def _in_parts(message: Json) -> Json:
    content = message["content"]
    if message["role"] != "user" or not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def _picture(seed: int, width: int, height: int) -> Image.Image:
    """Noise of several scales, as photographs have, with rectangles and strokes drawn on it."""
    from PIL import Image, ImageDraw

    random = np.random.default_rng(seed)
    made = Image.new("RGB", (width, height))
    for cells in (2, 5, 16, 64):
        noise = random.integers(0, 256, (cells, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        made = Image.blend(made, layer, 1.0 if cells == 2 else 0.3)
    draw = ImageDraw.Draw(made)
    for _ in range(2 * seed):
        x, y, w, h = (int(n) for n in random.integers(0, min(width, height) // 2, 4))
        colour = tuple(int(n) for n in random.integers(0, 256, 3))
        draw.rectangle((x, y, x + w, y + h), fill=colour)
        draw.line((x, height - y, x + 2 * w, height - h), fill=colour[::-1], width=2)
    return made
