"""What every engine is asked: in each round another picture and other words, for all the same."""

from __future__ import annotations

import random
from pathlib import Path

from tests.benchmarks.rivals.session import Question

TEXT_TOKENS = 64


class Workload:
    """Questions of one model.

    Args:
        checkpoint: For its tokenizer.
        picture: Width and height.
        image_tokens: What a picture of that size takes.
        folder: Where pictures are written.
        tokens: To generate.
    """

    def __init__(
        self,
        checkpoint: Path,
        picture: tuple[int, int],
        image_tokens: int,
        folder: Path,
        tokens: int,
    ) -> None:
        from tokenizers import Tokenizer

        self._words = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._picture = picture
        self._image_tokens = image_tokens
        self._folder = folder
        self._tokens = tokens

    def question(self, seed: int) -> Question:
        """One picture and 64 tokens of text."""
        path = self._folder / f"picture-{seed}.png"
        if not path.exists():
            draw(path, self._picture, seed)
        return Question(self.text(seed), self._tokens, str(path), self._image_tokens)

    def rows(self, seed: int, count: int) -> list[Question]:
        """Questions without pictures, to be decoded together."""
        return [Question(self.text(1000 * seed + row), self._tokens) for row in range(count)]

    def text(self, seed: int) -> str:
        """Words that are exactly 64 tokens."""
        chance = random.Random(seed)
        text = ""
        while True:
            letters = chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(1, 8))
            longer = text + chance.choice(("", " ")) + "".join(letters)
            count = len(self._words.encode(longer, add_special_tokens=False).ids)
            if count <= TEXT_TOKENS:
                text = longer
            if count == TEXT_TOKENS:
                return text


def draw(path: Path, size: tuple[int, int], seed: int) -> None:
    """A smooth picture, another one for each seed."""
    import numpy as np
    from PIL import Image

    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    turns = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(x / 37 + turn) + np.cos(y / 53 - turn) for turn in turns]
    levels = np.stack(waves, axis=-1) * 60 + 128
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.astype(np.uint8)).save(path)
