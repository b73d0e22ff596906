"""An answer on its way."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from vlmc.errors import VlmcError
from vlmc.runtime.generate import Job, Loop
from vlmc.runtime.request import Answer, Timings, Usage


class AnswerStream(Iterator[str]):
    """An answer on its way: pieces of text, then ``answer``.

    Closing it, leaving its ``with`` block or an exception (Ctrl-C) while it is read frees its
    slot; the model goes on with the next question.
    """

    def __init__(
        self,
        loop: Loop,
        job: Job,
        load_seconds: Callable[[], float],
        started: float,
        preprocess: float,
    ) -> None:
        self.job = job
        self._loop = loop
        self._load_seconds = load_seconds
        self._started = started
        self._preprocess = preprocess
        self._text: list[str] = []
        self._closed = False

    def __next__(self) -> str:
        job = self.job
        try:
            while not (any(job.pieces) or job.done or self._closed):
                self._loop.step()
        except BaseException:
            self.close()
            raise
        piece = "".join(job.pieces)
        job.pieces.clear()
        if piece:
            self._text.append(piece)
            return piece
        if job.error is not None:
            raise job.error
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up what is left of the answer."""
        self._closed = True
        self._loop.discard(self.job)

    def finish(self) -> Answer:
        """Reads to the end."""
        for _ in self:
            pass
        return self.answer

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            VlmcError: It is not finished, or failed.
        """
        job = self.job
        if job.error is not None:
            raise job.error
        if job.finish_reason is None or job.first_token_at is None or job.done_at is None:
            raise VlmcError("the answer is not finished")
        index = job.prompt.feature_index
        return Answer(
            text="".join([*self._text, *job.pieces]),
            token_ids=tuple(job.token_ids),
            prompt_token_ids=tuple(job.prompt.token_ids.tolist()),
            finish_reason=job.finish_reason,
            timings=Timings(
                load=self._load_seconds(),
                preprocess=self._preprocess,
                vision=job.features.seconds,
                prefill=job.prefill_seconds,
                decode=job.done_at - job.first_token_at,
                ttft=job.first_token_at - self._started,
            ),
            usage=Usage(
                prompt_tokens=len(index),
                image_tokens=int((index >= 0).sum()),
                completion_tokens=len(job.token_ids),
            ),
        )
