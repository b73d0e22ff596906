"""Values that flow through the runtime."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class PreparedImage:
    """One picture, ready for the vision program.

    Attributes:
        tensors: Inputs of the vision program by name (this image alone).
        tokens: Placeholder tokens it takes in the prompt: rows of its image features.
        grid: Feature rows as (time, height, width); M-RoPE reads it.
        tiles: Rows and columns of tiles it was cut into beside the whole picture; 0 and 0: none.
        runs: Feature rows of each tile, then of the whole; empty: all have as many.
        shapes: Of each of the ``runs`` its rows and columns, where positions read them.
        marks: Further feature rows, for tokens beside the placeholders
            (``PromptSpec.mark_token_ids``).
    """

    tensors: dict[str, Array]
    tokens: int
    grid: tuple[int, int, int]
    tiles: tuple[int, int] = (0, 0)
    runs: tuple[int, ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()
    marks: int = 0

    @property
    def rows(self) -> int:
        """All its feature rows."""
        return self.tokens + self.marks


@dataclass(frozen=True)
class ImageSpan:
    """Where an image stands in the prompt: ``tokens[start : start + length]``.

    With the marks around its tiles, where the model has them.
    """

    start: int
    length: int
    image: int


@dataclass(frozen=True)
class Prompt:
    """A prompt as the language program reads it.

    Attributes:
        token_ids: int64 [L], placeholders expanded.
        feature_index: int64 [L], row of the prompt's concatenated image features, -1 for text,
            -2 for a token that is an image's to the decoder, and has an embedding of its own.
        spans: The images' places, in order of appearance.
        images: The prepared images, same order.
    """

    token_ids: NDArray[np.int64]
    feature_index: NDArray[np.int64]
    spans: tuple[ImageSpan, ...] = ()
    images: tuple[PreparedImage, ...] = field(default=(), repr=False)
