"""The default number of threads: cores, not hyperthreads; the container's share, not the host's."""

import os

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc import machine
from vlmc.backends import threads
from vlmc.backends.threads import busy, default_threads
from vlmc.bundle.store import read_bundle
from vlmc.runtime.engine import Engine


@pytest.fixture
def known(tmp_path, monkeypatch):
    def make(siblings, allowed, quota=None):
        for cpu, text in enumerate(siblings):
            (tmp_path / str(cpu)).write_text(text + "\n")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota + "\n")
        monkeypatch.setattr(machine, "_SIBLINGS", str(tmp_path / "{}"))
        monkeypatch.setattr(machine, "_GROUPS", tmp_path)
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
def test_threads_worth_using(known, siblings, allowed, quota, count):
    assert known(siblings, allowed, quota) == count


def test_this_machine_has_some():
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("load", "count", "spins"),
    [
        ("0.00 0.01 0.05 1/213 4242\n", 4, True),  # this thread alone runs
        ("9.00 9.00 9.00 1/213 4242\n", 4, True),  # what has been is over
        ("0.00 0.01 0.05 2/213 4242\n", 4, False),
        ("0.00 0.01 0.05 2/213 4242\n", 3, True),  # there is a core for either
        ("0.00 0.01 0.05 5/213 4242\n", 1, False),
        ("0.00 0.01 0.05 0/213 4242\n", 4, True),
        ("", 4, True),  # another system's
        (None, 4, True),
    ],
)
def test_cores_that_others_want_are_not_spun_on(tmp_path, monkeypatch, load, count, spins):
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(threads, "processors", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert busy(count) is not spins


@pytest.mark.parametrize(("share", "spins"), [(1.5, False), (2, True), (64, True)])
def test_a_container_without_time_to_waste_does_not_spin(tmp_path, monkeypatch, share, spins):
    """On a host that has nothing else to do."""
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")
    (tmp_path / "loadavg").write_text("0.00 0.01 0.05 1/213 4242\n")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(threads, "processors", lambda: share)
    assert busy(2) is not spins


@pytest.mark.parametrize(("given", "running", "spins"), [(None, 1, True), (None, 99, False)])
@pytest.mark.parametrize("said", [True, False])
def test_the_engine_asks_unless_it_is_told(tmp_path, monkeypatch, given, running, spins, said):
    bundle = read_bundle(tiny_bundle(tmp_path))
    (tmp_path / "loadavg").write_text(f"0 0 0 {running}/100 1\n")
    monkeypatch.setattr(threads, "_LOAD", tmp_path / "loadavg")
    assert Engine(bundle, threads=1, spin=given).spin is spins
    assert Engine(bundle, threads=1, spin=said).spin is said
