"""What this process may use of the machine: its container's share of it, not the host's.

A container is a control group with limits. Groups lie in one another, each may have limits, and
inside a container the outer ones may be out of sight: the least of those that are seen counts.
"""

import math
import os
import platform
import resource
import sys
from pathlib import Path, PurePosixPath

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_CPUINFO = Path("/proc/cpuinfo")
_MEMBERSHIP = Path("/proc/self/cgroup")  # lines of hierarchy:controllers:path
_GROUPS = Path("/sys/fs/cgroup")


def cpu_name() -> str:
    """The CPU's own name, or the architecture's where it has none."""
    for line in _text(_CPUINFO).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def cores() -> int:
    """Physical cores in this process's affinity mask."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return len({_siblings(cpu) for cpu in allowed}) or os.cpu_count() or 1


def processors() -> float:
    """Processors that this process may keep busy: those of its mask, or its container's share."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return min(len(allowed) or os.cpu_count() or 1, _quota())


def memory() -> float:
    """Bytes: the machine's, the container's, or this process's own limit; inf if none is known."""
    limits = [math.inf]
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _text(folder / name).split() if word != "max"]
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits += [own] if own != resource.RLIM_INFINITY else []
    return min(limits)


def peak_memory(usage: resource.struct_rusage | None = None) -> int:
    """Bytes: the most that a process held at once; this one, unless ``wait4`` told of another."""
    unit = 1 if sys.platform == "darwin" else 1024
    return (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss * unit


def _quota() -> float:
    """Processors that the container allows to be kept busy; inf where it does not say."""
    quotas = [math.inf]
    for folder in _groups("cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        older = [word for name in names for word in _text(folder / name).split()]
        for words in (_text(folder / "cpu.max").split(), older):
            if len(words) == 2 and words[0] not in ("max", "-1"):
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def _groups(controller: str) -> list[Path]:
    """Folders of this process's control group and those around it, in either version."""
    found = [_GROUPS, _GROUPS / controller]  # a container's own, whatever its name outside
    for line in _text(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [_GROUPS / controller] if controllers else [_GROUPS, _GROUPS / "unified"]
        inner = PurePosixPath(path.lstrip("/"))
        found += [root / group for root in roots for group in (inner, *inner.parents)]
    return found


def _siblings(cpu: int) -> str:
    return _text(Path(_SIBLINGS.format(cpu))).strip() or str(cpu)


def _text(path: Path) -> str:
    """A small file of the system; empty where it is not there, or not for us."""
    try:
        return path.read_text()
    except OSError:
        return ""
