"""Large files hashed by another process: the same digests, the same errors, nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.sources import SourceFolder, apart, digests

NAMES = ("a.safetensors", "b.safetensors")


@pytest.fixture
def source(tmp_path: Path) -> SourceFolder:
    folder = tmp_path / "model"
    folder.mkdir()
    for at, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([at]) * 1000)
    return SourceFolder("local", None, folder, NAMES, name="model")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that were started; any file is a large one."""
    found: list[Any] = []
    begin = subprocess.Popen

    def recorded(command: Any, **options: Any) -> Any:
        found.append(command)
        return begin(command, **options)

    monkeypatch.setattr(apart.subprocess, "Popen", recorded)
    monkeypatch.setattr(apart, "_LARGE_BYTES", 1)
    return found


def test_another_process_gives_the_same_digests(source, started, tmp_path, monkeypatch):
    expected = digests(source)
    assert apart.digests_apart(source, NAMES, cache=None) == expected
    assert len(started) == 1
    # Only what is not remembered is left to it.
    monkeypatch.setattr("vlmc.sources.hashes._SETTLED_SECONDS", -1)
    digests(source, NAMES[:1], cache=tmp_path / "cache")
    assert apart.digests_apart(source, NAMES, cache=tmp_path / "cache") == expected
    assert started[1][-1] == NAMES[1]
    assert NAMES[0] not in started[1]
    digests(source, NAMES[1:], cache=tmp_path / "cache")
    assert apart.digests_apart(source, NAMES, cache=tmp_path / "cache") == expected
    assert len(started) == 2


def test_small_files_start_no_process(source, started, monkeypatch):
    monkeypatch.setattr(apart, "_LARGE_BYTES", 2001)
    assert apart.digests_apart(source, NAMES, cache=None) == digests(source)
    assert started == []


def test_a_file_that_cannot_be_read_is_named(source, started):
    (source.folder / NAMES[1]).unlink()
    with pytest.raises(VlmcError, match=r"cannot be read.*") as caught:
        apart.digests_apart(source, NAMES, cache=None)
    assert str(caught.value.at).endswith(NAMES[1])
    assert len(started) == 1


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the process do something else: lines of Python."""
    begin = subprocess.Popen

    def set_to(lines: str) -> None:
        command = [sys.executable, "-c", f"import os, time\n{lines}"]
        monkeypatch.setattr(apart.subprocess, "Popen", lambda _, **given: begin(command, **given))

    monkeypatch.setattr(apart, "_LARGE_BYTES", 1)
    return set_to


def test_a_file_that_can_be_read_again_is_hashed_here(source, ending):
    ending(f"os._exit({apart._REFUSED})")
    assert apart.digests_apart(source, NAMES, cache=None) == digests(source)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "were not hashed"), (signal.SIGBUS, "was cut short")]
)
def test_a_process_that_was_stopped_is_an_error(source, ending, number, said):
    ending(f"os.kill(os.getpid(), {number.value})")
    with pytest.raises(VlmcError, match=said):
        apart.digests_apart(source, NAMES, cache=None)


def test_work_beside_has_its_answer_when_it_asks(source, started):
    with apart.hashing_apart(source, NAMES, cache=None) as hashing:
        assert hashing.result() == digests(source)
    assert len(started) == 1


@pytest.mark.parametrize("early", [False, True])
def test_who_leaves_early_waits_for_nobody(source, ending, monkeypatch, early):
    ending("time.sleep(60)")
    slowly, begun = Event(), []
    make = apart.digests_apart

    def recorded(*given: Any, started: Any, **options: Any) -> Any:
        def tell(process: Any) -> None:
            begun.append(process)
            slowly.wait(30 if early else 0)
            started(process)
            slowly.set()

        return make(*given, started=tell, **options)

    def interrupted() -> None:
        if not early:  # than the process begins
            slowly.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(apart, "digests_apart", recorded)
    hashing_apart = apart.hashing_apart(source, NAMES, cache=None)
    with pytest.raises(KeyboardInterrupt), hashing_apart as hashing:
        interrupted()
    slowly.set()
    with pytest.raises(VlmcError, match="were not hashed"):
        hashing.result(30)
    assert begun[0].returncode == -signal.SIGKILL
