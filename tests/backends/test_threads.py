"""The default number of threads: cores, not hyperthreads; the container's share, not the host's."""

import os

import pytest

from vlmc.backends import threads
from vlmc.backends.threads import default_threads


@pytest.fixture
def machine(tmp_path, monkeypatch):
    def make(siblings, allowed, quota=None):
        for cpu, text in enumerate(siblings):
            (tmp_path / str(cpu)).write_text(text + "\n")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota + "\n")
        monkeypatch.setattr(threads, "_SIBLINGS", str(tmp_path / "{}"))
        monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        return default_threads()

    return make


@pytest.mark.parametrize(
    ("siblings", "allowed", "quota", "count"),
    [
        (["0", "1", "2", "3"], range(4), None, 4),
        (["0,2", "1,3", "0,2", "1,3"], range(4), None, 2),
        (["0,2", "1,3", "0,2", "1,3"], [0, 2], None, 1),
        (["0", "1", "2", "3"], [1, 3], None, 2),
        (["0", "1", "2", "3"], range(4), "max 100000", 4),
        (["0", "1", "2", "3"], range(4), "150000 100000", 2),
        (["0", "1", "2", "3"], range(4), "10000 100000", 1),
        ([], range(3), None, 3),
        ([], [], None, 64),
    ],
)
def test_threads_worth_using(machine, siblings, allowed, quota, count):
    assert machine(siblings, allowed, quota) == count


def test_this_machine_has_some():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
