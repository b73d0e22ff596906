"""Work begun before it is known to be needed."""

from __future__ import annotations

from threading import Event, current_thread

import pytest

from vlmc.workspace.early import begun_early


def test_it_is_begun_before_anybody_waits() -> None:
    begun = Event()

    def work(unwanted: Event) -> str:
        begun.set()
        return current_thread().name

    with begun_early(work) as made:
        assert begun.wait(60)
        assert made() == made() != current_thread().name


def test_what_it_raises_is_raised_where_it_is_waited_for() -> None:
    def work(unwanted: Event) -> None:
        raise LookupError("there")

    with begun_early(work) as made, pytest.raises(LookupError, match="there"):
        made()
    with begun_early(work):  # nobody asks
        pass


@pytest.mark.parametrize("error", [None, LookupError, KeyboardInterrupt])
def test_whoever_leaves_has_it_ended(error: type[BaseException] | None) -> None:
    ended = Event()

    def work(unwanted: Event) -> None:
        if unwanted.wait(60):
            ended.set()

    def leave() -> None:
        with begun_early(work):
            if error is not None:
                raise error

    if error is None:
        leave()
    else:
        with pytest.raises(error):
            leave()
    assert ended.is_set()
