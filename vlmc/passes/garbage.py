"""Garbage, looked for less often while much is made that stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Objects made since the last look; Python's own is 700. Some tens of MiB at most wait for it.
_SELDOM = 50_000


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Graphs of many small objects are made inside: a sixth of the time was spent on looking."""
    before = gc.get_threshold()
    gc.set_threshold(_SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
