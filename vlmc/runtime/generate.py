"""The one generate loop: requests wait, are prefilled chunk by chunk, and decode together."""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlmc.backends import SessionError
from vlmc.errors import VlmcError
from vlmc.runtime.engine import Engine, Features
from vlmc.runtime.features import Chunk, needed_images
from vlmc.runtime.prefix import chunk_keys
from vlmc.runtime.request import FinishReason
from vlmc.runtime.sampling import Sampler
from vlmc.runtime.stops import Stops
from vlmc.runtime.tokenizer import StreamDecoder
from vlmc.runtime.types import Array, Prompt


@dataclass(eq=False)
class Job:
    """One request on its way through the loop.

    Attributes:
        prompt: Its tokens and images.
        positions: int64 ``[L]`` or ``[3, L]`` of the prompt.
        following: Position of the first generated token.
        sampler: Chooses its tokens.
        decoder: Its tokens' text.
        stops: Its stop strings.
        room: Most tokens it may generate.
        ends: Token ids that end it.
        token_ids: Generated so far, the end token left out.
        pieces: Text that may be shown and was not taken yet.
        finish_reason: Set when it is done.
        error: Set when it is done because it failed; the others go on.
    """

    prompt: Prompt
    positions: NDArray[np.int64]
    following: int
    sampler: Sampler
    decoder: StreamDecoder
    stops: Stops
    room: int
    ends: frozenset[int]
    token_ids: list[int] = field(default_factory=list)
    pieces: deque[str] = field(default_factory=deque)
    finish_reason: FinishReason | None = None
    error: VlmcError | SessionError | None = None
    features: Features = field(default_factory=Features)
    chunks: deque[Chunk] = field(default_factory=deque)
    keys: deque[bytes] = field(default_factory=deque)
    length: int = 0  # positions of its slot that are written
    prefill_seconds: float = 0.0
    first_token_at: float | None = None
    done_at: float | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.done_at is not None

    @property
    def next_position(self) -> int:
        """Position of the token that is fed next."""
        return self.following + self.length - len(self.prompt.token_ids)

    def take(self, logits: Array) -> None:
        """Chooses the next token from logits ``[V]``."""
        token = self.sampler.choose(logits)
        now = time.perf_counter()
        if self.first_token_at is None:
            self.first_token_at = now
        if token in self.ends:
            self._end("stop")
            return
        self.token_ids.append(token)
        if self._show(self.decoder.push(token)):
            self._close("stop")
        elif len(self.token_ids) >= self.room:
            self._end("length")

    def fail(self, error: VlmcError | SessionError) -> None:
        """Ends it with an error."""
        self.error = error
        self.done_at = time.perf_counter()

    def _end(self, reason: FinishReason) -> None:
        if self._show(self.decoder.finish()):
            self._close("stop")
            return
        self.pieces.append(self.stops.flush())
        self._close(reason)

    def _close(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.done_at = time.perf_counter()

    def _show(self, text: str) -> bool:
        shown, stopped = self.stops.feed(text)
        self.pieces.append(shown)
        return stopped


class Loop:
    """Continuous batching over the slots of a cache.

    The rows that decode fill slots 0 to n-1 without a gap, because one step runs a contiguous
    run of slots; the row being prefilled has slot n. A row that leaves is replaced by the last
    one, which costs about as much as that row's attention in one step.

    One thread at a time. ``step`` may be interrupted (Ctrl-C); ``discard`` then removes a job.

    Args:
        engine: Does the work; its cache is the loop's alone while it is busy.
        reuse: Take over the chunks that a slot holds already from an earlier prompt with the
            same beginning, images included: a chat's next turn, say.
    """

    def __init__(self, engine: Engine, *, reuse: bool = True) -> None:
        self.engine = engine
        # A state is that after the last token; no earlier chunk can be gone on from.
        self._reuse = reuse and not engine.cache.recurrent
        self._waiting: deque[Job] = deque()
        self._filling: Job | None = None
        self._rows: list[Job] = []

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._filling or self._rows)

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        chunks = self.engine.chunks(job.prompt)
        job.chunks = deque(chunks)
        if self._reuse:
            job.keys = deque(chunk_keys(job.prompt, job.positions, chunks))
        self._waiting.append(job)

    def step(self) -> None:
        """Prefills one chunk of one job, then decodes one token for every row.

        So a long prompt delays the answers under way by a chunk at a time.
        """
        room = len(self._rows) < self.engine.limits.batch_size
        if self._filling is None and self._waiting and room:
            self._filling = self._waiting.popleft()
            self._take_over(self._filling)
        if self._filling is not None:
            self._prefill(self._filling)
        if self._rows:
            self._decode()

    def discard(self, job: Job) -> None:
        """Forgets a job wherever it is; its slot is free again."""
        if job in self._waiting:
            self._waiting.remove(job)
        elif job is self._filling:
            self._filling = None
        elif any(job is row for row in self._rows):
            self._leave([job])

    def _take_over(self, job: Job) -> None:
        """Skips the chunks its slot holds; the last one is run in any case, for its logits."""
        count = self.engine.cache.matching(len(self._rows), list(job.keys)[:-1])
        while count and self._continues(job, job.chunks[count]):
            count -= 1
        for _ in range(count):
            job.length = job.chunks.popleft().stop
            job.keys.popleft()

    def _continues(self, job: Job, chunk: Chunk) -> bool:
        """Whether a chunk reads features that only an earlier one can compute (single split)."""
        if not self.engine.single or chunk.image is not None:
            return False
        return bool(needed_images(job.prompt, chunk))

    def _prefill(self, job: Job) -> None:
        started = time.perf_counter()
        apart = job.features.seconds + self.engine.load_seconds
        chunk = job.chunks[0]
        key = job.keys[0] if job.keys else None
        slot = len(self._rows)
        try:
            logits = self.engine.prefill(slot, job.prompt, job.positions, chunk, job.features, key)
        except (VlmcError, SessionError) as error:
            self._filling = None
            job.fail(error)
            return
        job.length = chunk.stop
        job.chunks.popleft()
        if job.keys:
            job.keys.popleft()
        apart = job.features.seconds + self.engine.load_seconds - apart
        job.prefill_seconds += time.perf_counter() - started - apart
        if not job.chunks:
            job.features.rows.clear()
            self._rows, self._filling = [*self._rows, job], None
            self._take([job], logits[None])

    def _decode(self) -> None:
        rows = self._rows
        try:
            logits = self.engine.decode(
                [row.token_ids[-1] for row in rows],
                [row.next_position for row in rows],
                [row.length for row in rows],
            )
        except SessionError as error:
            for row in rows:
                row.fail(error)
            self._rows = []
            if self._filling is not None:
                self.engine.cache.move(len(rows), 0, self._filling.length)
            return
        for row in rows:
            row.length += 1
        self._take(rows, logits)

    def _take(self, rows: Sequence[Job], logits: Array) -> None:
        for row, scores in zip(rows, logits, strict=True):
            try:
                row.take(scores)
            except VlmcError as error:
                row.fail(error)
        if done := [row for row in rows if row.done]:
            self._leave(done)

    def _leave(self, jobs: Iterable[Job]) -> None:
        cache = self.engine.cache
        for job in jobs:
            rows = list(self._rows)
            hole = next(at for at, row in enumerate(rows) if row is job)
            last = rows.pop()
            if last is not job:
                cache.move(len(rows), hole, last.length)
                rows[hole] = last
            if self._filling is not None:
                cache.move(len(rows) + 1, len(rows), self._filling.length)
            self._rows = rows
