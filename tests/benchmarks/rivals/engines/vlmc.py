"""vlmc itself, through its public API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.rivals.session import Question, Read


class Vlmc:
    def __init__(self, folder: str, threads: int) -> None:
        from vlmc.runtime import load

        self.model = load(folder, threads=threads, reuse=False)

    def answer(self, question: Question, first: Callable[[], None]) -> Read:
        stream = self.model.start(_request(question, question.tokens))
        while stream.job.first_token_at is None:
            self.model.loop.step()
        first()
        answer = stream.finish()
        vision = answer.timings.preprocess + answer.timings.vision
        return Read(answer.usage.prompt_tokens, vision)

    def together(self, questions: Sequence[Question]) -> tuple[int, float]:
        count = len(questions)
        # A row starts one step after the one before it; so all of them end in the same step.
        requests = [
            _request(question, question.tokens + count - 1 - row)
            for row, question in enumerate(questions)
        ]
        answers = self.model.generate_batch(requests)
        return count * (questions[-1].tokens - 1), answers[-1].timings.decode


def open_session(folder: str, threads: int, rows: int) -> Vlmc:
    return Vlmc(folder, threads)


def _request(question: Question, tokens: int) -> Any:
    from vlmc.runtime import Request

    images = [] if question.image is None else [question.image]
    return Request(prompt=question.text, images=images, max_new_tokens=tokens, ignore_eos=True)
