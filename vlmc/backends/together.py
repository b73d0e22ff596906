"""Threads whose runs of a program wait for one another, so that its weights are opened once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
Call = tuple[Mapping[str, Array], Mapping[str, Array]]  # feeds, into: see ``Session.run``
T = TypeVar("T")


class ManySession(Protocol):
    """An opened program that is cheaper to run several times at once."""

    kernels: str
    portable: str

    def run_all(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        """As ``Session.run``, for each call."""
        ...


@dataclass(eq=False)
class _Run:
    """A thread's run that waits for those of the others."""

    session: ManySession
    call: Call
    answer: Future[dict[str, Array]] = field(default_factory=Future)


class Together:
    """Runs of several threads, collected until all of these threads wait for one.

    A program that is opened piece by piece spends its time on opening. Several questions, each in
    a thread and with a cache of its own, share that: a program is run for all that ask for it
    once nobody has anything else to do. Answers are those of a thread alone.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sessions: dict[object, ManySession] = {}
        self._members = 0
        self._waiting: list[_Run] = []

    def map(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """What each of the works gives, each done in a thread; raises the first one's error."""
        if not works:
            return []
        self._members = len(works)
        with ThreadPoolExecutor(len(works)) as pool:
            done = [pool.submit(self._member, work) for work in works]
            return [one.result() for one in done]

    def session(self, key: object, make: Callable[[], ManySession]) -> Shared:
        """The program of that key, made the first time; everyone's runs of it are collected."""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = make()
            return Shared(self, self._sessions[key])

    def run(self, session: ManySession, call: Call) -> dict[str, Array]:
        """Runs a program once all threads wait for one; a thread outside ``map`` does not wait."""
        mine = _Run(session, call)
        with self._lock:
            self._waiting.append(mine)
            self._advance()
        return mine.answer.result()

    def _member(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            with self._lock:
                self._members -= 1
                self._advance()

    def _advance(self) -> None:
        """Runs the program that waits longest, if all wait; the lock is held, as nobody needs it.

        Whoever it was run for goes on, and will wait or end, which leads here again.
        """
        if not self._waiting or len(self._waiting) < self._members:
            return
        session = self._waiting[0].session
        here = [run for run in self._waiting if run.session is session]
        self._waiting = [run for run in self._waiting if run.session is not session]
        try:
            found = session.run_all([run.call for run in here])
        except Exception as error:
            for run in here:
                run.answer.set_exception(error)
        else:
            for run, outputs in zip(here, found, strict=True):
                run.answer.set_result(outputs)


class Shared:
    """See ``vlmc.backends.Session``; one of the threads' own."""

    def __init__(self, together: Together, session: ManySession) -> None:
        self._together = together
        self._session = session
        self.kernels = session.kernels
        self.portable = session.portable

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See ``vlmc.backends.Session.run``."""
        return self._together.run(self._session, (feeds, into or {}))
