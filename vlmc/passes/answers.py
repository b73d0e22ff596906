"""reference: what transformers answers to the golden questions, kept as files.

It depends on the checkpoint, its pictures and the questions alone, so a build that changes a
length, a precision or a split compares with the same answers again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlmc.passes.questions import Question, messages_of, picture

if TYPE_CHECKING:
    from vlmc.passes.reference import Reference


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


def write_answers(
    reference: Reference, questions: Sequence[Question], tokens: int, out: Path
) -> None:
    """Asks every question and writes ``NAME.json`` and ``NAME-*.npy`` for each.

    Args:
        reference: transformers over the checkpoint.
        questions: Those that fit the bundle's limits.
        tokens: How many of each answer.
        out: The pass's folder.
    """
    from PIL import Image

    for q in questions:
        opened = [Image.open(io.BytesIO(picture(size))) for size in q.sizes]
        answer = reference.answer(messages_of(q), opened, tokens)
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
