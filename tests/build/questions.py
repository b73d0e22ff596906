"""What the parity tests ask: text alone, pictures of every shape, several of them, turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]
IMAGE: Json = {"type": "image"}


@dataclass(frozen=True)
class Question:
    """Messages, and (width, height, mode) of each picture they show."""

    messages: list[Json]
    shown: tuple[tuple[int, int, str], ...] = ()

    @property
    def words(self) -> str:
        """The text of the last part."""
        return str(self.messages[-1]["content"][-1]["text"])

    def pictures(self) -> list[Image.Image]:
        return [
            picture(width, height, mode, seed)
            for seed, (width, height, mode) in enumerate(self.shown)
        ]


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth noise: every resize and every shift of it shows."""
    random = np.random.default_rng(seed)
    cells = random.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    return smooth.convert(mode)


def user(*parts: Json | str) -> Json:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}


def said(text: str) -> Json:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


QUESTIONS = {
    "no image": Question([user("Name three colours of the rainbow.")]),
    "landscape": Question([user(IMAGE, "What is in this picture?")], ((97, 31, "RGB"),)),
    "portrait": Question([user("Describe", IMAGE, "in one sentence.")], ((30, 90, "RGB"),)),
    "three images": Question(
        [user(IMAGE, "first", IMAGE, "second, then", IMAGE, "which is taller?")],
        ((30, 80, "RGB"), (97, 31, "RGB"), (64, 64, "RGB")),
    ),
    "turns": Question(
        [user(IMAGE, "What?"), said("a fox"), user("And here", IMAGE)],
        ((50, 45, "RGB"), (28, 28, "RGB")),
    ),
    "two before": Question(
        [user(IMAGE, IMAGE, "Which is taller?")], ((50, 45, "RGB"), (28, 28, "RGB"))
    ),
    "grey": Question([user(IMAGE, "a")], ((40, 70, "L"),)),
    "see-through": Question([user(IMAGE, "b")], ((33, 77, "RGBA"),)),
    "palette": Question([user(IMAGE, "c")], ((80, 20, "P"),)),
    "tiny": Question([user(IMAGE, "d")], ((5, 4, "RGB"),)),
    "wide": Question([user("text first", IMAGE)], ((200, 20, "RGB"),)),
}
PLAIN = ("no image", "landscape", "portrait", "three images", "turns")
