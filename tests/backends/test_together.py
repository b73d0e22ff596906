"""Threads that share a program: it is run once for all who wait, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from vlmc.backends.together import Call, Together


class Doubling:
    """A program that doubles ``x``, and notes how many runs it is given at a time."""

    kernels = "numpy"
    portable = ""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run_all(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        self.batches.append(len(calls))
        if any(feeds["x"] < 0 for feeds, _ in calls):
            raise ValueError("negative")
        return [{"y": feeds["x"] * 2} for feeds, _ in calls]


def steps(together: Together, program: Doubling, count: int, start: int) -> int:
    session = together.session("program", lambda: program)
    value = np.int64(start)
    for _ in range(count):
        value = session.run({"x": value})["y"]
    return int(value)


def test_runs_are_shared_until_threads_end_one_by_one() -> None:
    together, program = Together(), Doubling()
    works = [partial(steps, together, program, count, start) for count, start in ((1, 3), (3, 5))]
    assert together.map([*works, partial(steps, together, program, 0, 9)]) == [6, 40, 9]
    assert program.batches == [2, 1, 1]
    assert together.map([]) == []


def test_a_thread_alone_does_not_wait() -> None:
    program = Doubling()
    assert steps(Together(), program, 2, 1) == 4
    assert program.batches == [1, 1]


def test_two_programs_take_turns() -> None:
    together, programs = Together(), [Doubling(), Doubling()]
    sessions = [together.session(at, partial(lambda at: programs[at], at)) for at in range(2)]

    def both(first: int) -> int:
        value = sessions[first].run({"x": np.int64(1)})["y"]
        return int(sessions[1 - first].run({"x": value})["y"])

    assert together.map([partial(both, 0), partial(both, 1)]) == [4, 4]
    assert sorted(sum(program.batches) for program in programs) == [2, 2]


def test_an_error_reaches_everyone_it_concerns() -> None:
    together, program = Together(), Doubling()
    works = [partial(steps, together, program, 2, start) for start in (1, -1)]
    with pytest.raises(ValueError, match="negative"):
        together.map(works)
    assert together.map([partial(steps, together, program, 1, 4)] * 2) == [8, 8]


def test_a_thread_that_fails_is_not_waited_for() -> None:
    together, program = Together(), Doubling()

    def fails() -> int:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        together.map([fails, partial(steps, together, program, 2, 1)])
    assert program.batches == [1, 1]
