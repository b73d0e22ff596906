"""The golden questions every bundle is checked with, and their pictures."""

import io
from dataclasses import dataclass

import numpy as np

from vlmc.schema import Json

# Every token reads a large checkpoint once more: the larger, the fewer are compared.
_TOKENS = ((256 << 20, 16), (4 << 30, 2))
_FEWEST_TOKENS = 1


@dataclass(frozen=True)
class Question:
    """One golden question: text, and the sizes (width, height) of its pictures."""

    name: str
    text: str
    sizes: tuple[tuple[int, int], ...] = ()


QUESTIONS = (
    Question("text", "Name three colours."),
    Question("image", "What is in this picture?", ((96, 64),)),
    Question("two-images", "Which picture is taller?", ((64, 96), (80, 80))),
)


def picture(size: tuple[int, int]) -> bytes:
    """A fixed test picture as PNG bytes: gradients and a grid, so that every resize shows."""
    from PIL import Image

    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x // 7 + y // 5) % 2 * 200],
        axis=-1,
    )
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG", compress_level=9)
    return stream.getvalue()


def answer_length(checkpoint_bytes: int) -> int:
    """How many tokens of an answer are compared, for a checkpoint of that size."""
    return next((n for limit, n in _TOKENS if checkpoint_bytes <= limit), _FEWEST_TOKENS)


def messages_of(question: Question) -> list[Json]:
    """The question as chat messages: its images, then its text."""
    images: list[Json] = [{"type": "image"} for _ in question.sizes]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question.text}]}]
