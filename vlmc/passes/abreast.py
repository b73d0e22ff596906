"""Several questions abreast: each a thread of its own, a weight read once for all that want it.

One thread runs at a time, until it wants a weight that others want too; there it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from vlmc.passes.streamed import StoredTensor

T = TypeVar("T")


class UnwantedError(Exception):
    """Nobody waits for the answers any more."""


def abreast(tasks: Sequence[Callable[[], T]], unwanted: Event | None = None) -> list[T]:
    """What each task returns; a weight that several wait for is read once for all of them.

    Once all that are not done wait, the first of the weights they wait for is read.

    Args:
        tasks: Each runs a model over weights of ``vlmc.passes.streamed``, and changes nothing that
            another one reads.
        unwanted: Ends all of them before the next weight, once it is set.

    Raises:
        UnwantedError: That was so.
        BaseException: What the first task to fail raised, or an interrupt; the others are ended.
    """
    from vlmc.passes.streamed import serve

    if len(tasks) == 1 and unwanted is None:
        return [tasks[0]()]
    runs = [_Run(task) for task in tasks]
    with ExitStack() as ends:
        for run in runs:
            ends.callback(run.leave)
            run.go()
        while waiting := [run for run in runs if run.weight is not None]:
            if unwanted is not None and unwanted.is_set():
                raise UnwantedError
            first = min(run.place() for run in waiting)
            together = [run for run in waiting if run.place() == first]
            weight = together[0].weight
            assert weight is not None
            made = serve(weight, [run.wanted for run in together])
            for run in reversed(together):
                run.given, run.wanted, run.weight = made.pop(), 0, None
            for run in together:
                run.go()
    return [run.result for run in runs]


class _Ended(BaseException):
    """Ends a thread that nobody waits for any more; nothing that a model catches."""


class _Run(Generic[T]):
    """A task in its thread, which runs only between ``go`` and the next weight that it wants.

    Attributes:
        weight: What it waits for; None: nothing, it is done.
        wanted: What of it, see ``serve``.
        given: What it is given when it goes on.
        result: What the task returned.
    """

    weight: StoredTensor | None = None
    wanted: Tensor | int = 0
    given: Tensor | None = None
    result: T

    def __init__(self, task: Callable[[], T]) -> None:
        self._task = task
        self._turn, self._paused = Semaphore(0), Semaphore(0)
        self._error: BaseException | None = None
        self._ended = False
        self._thread = Thread(target=self._run, daemon=True)

    def place(self) -> tuple[bool, int, int]:
        """Of the weight and the row it waits for, among all there are: a tower comes first."""
        assert self.weight is not None
        row = self.wanted if isinstance(self.wanted, int) else -1
        return self.weight.together, self.weight.place, row

    def go(self) -> None:
        """Lets it run until it waits or is done; raises what it raised."""
        if not self._thread.is_alive():
            self._thread.start()
        self._turn.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Ends it, wherever it is."""
        self._ended = True
        self._turn.release()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        from vlmc.passes.streamed import WAIT

        WAIT.set(self._wait)
        self._turn.acquire()
        try:
            self.result = self._task()
        except _Ended:
            pass
        except BaseException as error:  # raised again by ``go``
            self._error = error
        finally:
            self._paused.release()

    def _wait(self, weight: StoredTensor, wanted: Tensor | int) -> Tensor:
        self.weight, self.wanted = weight, wanted
        self._paused.release()
        self._turn.acquire()
        if self._ended:
            raise _Ended
        given, self.given = self.given, None
        assert given is not None
        return given
