"""Work begun before it is known whether it is needed, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def begun_early(work: Callable[[Event], T]) -> Iterator[Callable[[], T]]:
    """Begins work now.

    Args:
        work: Given an event; once it is set, nobody wants the result, and the work should end soon,
            by an error too.

    Yields:
        What waits for the work, and returns or raises what it does. Whoever leaves without having
        waited, as after an error or an interrupt, has it ended, and waits for that.
    """
    unwanted = Event()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(work, unwanted)
        try:
            yield made.result
        finally:
            unwanted.set()
