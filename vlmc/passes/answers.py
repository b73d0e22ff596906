"""reference: what transformers answers to the golden questions, kept as files.

It depends on the checkpoint, its pictures and the questions alone, so a build that changes a
length, a precision or a split compares with the same answers again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmc.passes.questions import Question, messages_of, picture

if TYPE_CHECKING:
    from vlmc.passes.reference import Asking


@dataclass(frozen=True)
class Expected:
    """What transformers answers.

    Attributes:
        prompt_token_ids: Of its processor.
        features: For each image, float32 [tokens, H].
        token_ids: Greedy.
        logits: float32 [len(token_ids), V], each the row its token was chosen from.
    """

    prompt_token_ids: list[int]
    features: list[NDArray[np.float32]]
    token_ids: list[int]
    logits: NDArray[np.float32]


def askings(questions: Sequence[Question], tokens: int) -> list[Asking]:
    """The golden questions as transformers is asked them, for so many tokens of each answer."""
    from PIL import Image

    from vlmc.passes.reference import Asking

    return [
        Asking(
            messages_of(q),
            [Image.open(io.BytesIO(picture(size))) for size in q.sizes],
            tokens,
        )
        for q in questions
    ]


def write_answers(questions: Sequence[Question], answers: Iterable[Expected], out: Path) -> None:
    """Writes ``NAME.json`` and ``NAME-*.npy`` for each question.

    Args:
        questions: Those that fit the bundle's limits.
        answers: To each of them.
        out: The pass's folder.
    """
    for q, answer in zip(questions, answers, strict=True):
        ids = {"prompt_token_ids": answer.prompt_token_ids, "token_ids": answer.token_ids}
        (out / f"{q.name}.json").write_text(json.dumps(ids), encoding="utf-8")
        np.save(out / f"{q.name}-logits.npy", answer.logits)
        for at, features in enumerate(answer.features):
            np.save(out / f"{q.name}-features-{at}.npy", features)


def read_answers(folder: Path, questions: Sequence[Question]) -> Mapping[str, Expected]:
    """What ``write_answers`` wrote, by question."""
    found = {}
    for q in questions:
        ids = json.loads((folder / f"{q.name}.json").read_text(encoding="utf-8"))
        found[q.name] = Expected(
            prompt_token_ids=ids["prompt_token_ids"],
            features=[
                np.load(folder / f"{q.name}-features-{at}.npy") for at in range(len(q.sizes))
            ],
            token_ids=ids["token_ids"],
            logits=np.load(folder / f"{q.name}-logits.npy"),
        )
    return found
