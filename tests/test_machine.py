"""What a process may use: the least of the machine's, its containers' and its own limits."""

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vlmc import machine

ROOT = Path(__file__).parents[1]
GIB = 1 << 30
V1 = "9:name=systemd:/\n4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n0::/\n"
NONE = 9223372036854771712  # version 1's word for no limit


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A machine of eight processors and 64 GiB, with files of control groups."""

    def make(membership, files):
        (tmp_path / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        sizes = {"SC_PHYS_PAGES": 16 << 20, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(machine, "_MEMBERSHIP", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    return make


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("", {}, 64),
        ("0::/\n", {"memory.max": "max"}, 64),
        ("0::/\n", {"memory.max": 4 * GIB}, 4),
        ("0::/\n", {"memory.max": 100 * GIB}, 64),
        # A service inside a container: its own group, and the one around it.
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 8 * GIB}, 8),
        ("0::/a/b\n", {"a/b/memory.max": 2 * GIB, "a/memory.max": 8 * GIB}, 2),
        ("0::/a/b\n", {"c/memory.max": 2 * GIB}, 64),
        # The outer name of a container's group, whose folder is the root inside.
        ("0::/docker/a\n", {"memory.max": 2 * GIB}, 2),
        (V1, {"memory/memory.limit_in_bytes": NONE}, 64),
        (V1, {"memory/memory.limit_in_bytes": 3 * GIB}, 3),
        (V1, {"memory/docker/a/memory.limit_in_bytes": 3 * GIB}, 3),
        (V1, {"memory/docker/memory.limit_in_bytes": 3 * GIB}, 3),
        (V1, {"cpu/docker/memory.limit_in_bytes": 3 * GIB}, 64),
    ],
)
def test_memory_is_the_least_limit(container, membership, files, limit):
    container(membership, files)
    assert machine.memory() == limit * GIB


def test_memory_ends_at_the_processs_own_limit():
    code = "from vlmc.machine import memory; print(int(memory()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= GIB


def test_memory_may_be_unknown(container, monkeypatch):
    container("", {})
    monkeypatch.setattr(os, "sysconf_names", {})
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert machine.memory() == math.inf


@pytest.mark.parametrize(
    ("membership", "files", "share"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "1600000 100000"}, 8),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
        (
            V1,
            {
                "cpu/docker/a/cpu.cfs_quota_us": "300000",
                "cpu/docker/a/cpu.cfs_period_us": "100000",
            },
            3,
        ),
    ],
)
def test_processors_are_the_containers_share(container, membership, files, share):
    container(membership, files)
    assert machine.processors() == share


def test_files_that_are_not_for_us_say_nothing(container, tmp_path, monkeypatch):
    container("0::/\n", {"memory.max": GIB, "cpu.max": "1000 1000"})
    refused = PermissionError(13, "Permission denied")

    def refuse(path, *args):
        raise refused

    monkeypatch.setattr(Path, "read_text", refuse)
    assert (machine.memory(), machine.processors()) == (64 * GIB, 8)


def test_this_machine_has_some():
    assert 0 < machine.processors() <= (os.cpu_count() or 1)
    assert machine.memory() > 1 << 20
    assert machine.cpu_name()
