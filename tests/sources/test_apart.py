"""Large files hashed by another process: the same digests, the same errors, nothing twice."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
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
    run = subprocess.run

    def recorded(command: Any, **options: Any) -> Any:
        found.append(command)
        return run(command, **options)

    monkeypatch.setattr(apart.subprocess, "run", recorded)
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


def test_a_file_that_can_be_read_again_is_hashed_here(source, monkeypatch):
    monkeypatch.setattr(apart, "_LARGE_BYTES", 1)
    refused = subprocess.CompletedProcess([], apart._REFUSED, "", "")
    monkeypatch.setattr(apart.subprocess, "run", lambda *given, **options: refused)
    assert apart.digests_apart(source, NAMES, cache=None) == digests(source)


@pytest.mark.parametrize(
    ("code", "said"), [(-signal.SIGKILL, "were not hashed"), (-signal.SIGBUS, "was cut short")]
)
def test_a_process_that_was_stopped_is_an_error(source, monkeypatch, code, said):
    monkeypatch.setattr(apart, "_LARGE_BYTES", 1)
    killed = subprocess.CompletedProcess([], code, "", "")
    monkeypatch.setattr(apart.subprocess, "run", lambda *given, **options: killed)
    with pytest.raises(VlmcError, match=said):
        apart.digests_apart(source, NAMES, cache=None)
