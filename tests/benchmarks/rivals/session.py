"""What an engine must do to be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        text: The user's words: 64 tokens.
        tokens: To generate, end tokens ignored.
        image: Path of a PNG, or None.
        image_tokens: What the picture takes; for engines that run no vision tower.
    """

    text: str
    tokens: int
    image: str | None = None
    image_tokens: int = 0


class Read(NamedTuple):
    """What is known of a prompt: its tokens, and seconds from the picture to its features.

    No seconds: the engine runs the language model alone.
    """

    prompt_tokens: int
    vision: float | None


class Session(Protocol):
    """An engine with a model open; ``engines/NAME.py`` has ``open_session(**options)``."""

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        """Answers greedily; calls ``first`` once, when the first token is there.

        An engine that runs no vision tower reads as many random tokens as the picture takes.
        """
        ...

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        """Decodes several rows at once; tokens and seconds of the steps that all rows shared."""
        ...
