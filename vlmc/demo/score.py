"""Scores anything that answers questions about pictures on held-out pictures. Imports no torch."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from PIL import Image

from vlmc.demo.questions import KINDS, Question, one_of_each
from vlmc.demo.words import UNSEEN_WORDS
from vlmc.demo.world import render, scene

HELD_OUT_SEED = 1_000_000
"""The first seed of the pictures that are measured, unless told."""

Answerer = Callable[[Image.Image, Sequence[str]], Sequence[str]]
"""Takes one picture and independent questions about it, returns an answer to each."""


class Tally(TypedDict):
    """How many questions were asked, how many answered right, and the share."""

    right: int
    asked: int
    accuracy: float


class Miss(TypedDict):
    """A wrong answer, with the seed of its picture."""

    seed: int
    question: str
    expected: str
    answer: str


class Score(TypedDict):
    """The result of `score`: overall, per kind, on words never trained, and the misses."""

    pictures: int
    seed: int
    overall: Tally
    kinds: dict[str, Tally]
    unseen_words: Tally
    misses: list[Miss]


def is_right(answer: str, expected: str) -> bool:
    """Whether the whole answer is the expected one, apart from case and outer white space."""
    return answer.strip().casefold() == expected.strip().casefold()


def score(answer: Answerer, *, pictures: int = 500, seed: int = HELD_OUT_SEED) -> Score:
    """Asks one question of each kind about `pictures` held-out pictures from `seed` on.

    Args:
        answer: what is measured; it is called once per picture.
        pictures: number of pictures.
        seed: seed of the first picture; the others follow it.

    Returns:
        Counts and shares right. "read" and "describe" need every letter right.
    """
    outcomes: list[tuple[Question, bool, bool]] = []
    misses: list[Miss] = []
    for one in range(seed, seed + pictures):
        shown = scene(one, split="held-out")
        unseen = shown.word is not None and shown.word.text in UNSEEN_WORDS
        asked = one_of_each(shown)
        answers = answer(render(shown), [question.question for question in asked])
        for question, given in zip(asked, answers, strict=True):
            right = is_right(given, question.answer)
            outcomes.append((question, right, unseen))
            if not right:
                misses.append(
                    {
                        "seed": one,
                        "question": question.question,
                        "expected": question.answer,
                        "answer": given,
                    }
                )
    kinds = {kind: [right for q, right, _ in outcomes if q.kind == kind] for kind in KINDS}
    return {
        "pictures": pictures,
        "seed": seed,
        "overall": _tally([right for _, right, _ in outcomes]),
        "kinds": {kind: _tally(found) for kind, found in kinds.items()},
        "unseen_words": _tally([r for q, r, unseen in outcomes if unseen and q.kind == "read"]),
        "misses": misses,
    }


def _tally(found: list[bool]) -> Tally:
    accuracy = sum(found) / len(found) if found else 0.0
    return {"right": sum(found), "asked": len(found), "accuracy": accuracy}
