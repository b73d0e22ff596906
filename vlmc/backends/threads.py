"""How many threads are worth using: physical cores this process may run on. And which go first."""

import math
import os
import platform
import sys
import threading
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_CPUINFO = Path("/proc/cpuinfo")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_LOAD = Path("/proc/loadavg")  # averages, then running/existing threads


def default_threads() -> int:
    """Physical cores in this process's affinity mask, within its container's CPU quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cores = {_siblings(cpu) for cpu in allowed}
    count = len(cores) or os.cpu_count() or 1
    return max(1, min(count, _quota()))


def cpu_name() -> str:
    """The CPU's own name, or the architecture's where it has none."""
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def busy(threads: int) -> bool:
    """Whether other processes want the cores that ``threads`` would spin on, now."""
    words = _LOAD.read_text().split() if _LOAD.is_file() else []
    if len(words) < 4:
        return False
    running = int(words[3].partition("/")[0]) - 1  # this thread runs
    return running + threads > (os.cpu_count() or 1)


def step_back() -> None:
    """Lowers this thread's priority, where threads have one of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = min(19, os.getpriority(os.PRIO_PROCESS, thread) + 10)
        os.setpriority(os.PRIO_PROCESS, thread, nice)


def _siblings(cpu: int) -> str:
    path = Path(_SIBLINGS.format(cpu))
    return path.read_text().strip() if path.is_file() else str(cpu)


def _quota() -> int:
    words = _QUOTA.read_text().split() if _QUOTA.is_file() else []
    if len(words) != 2 or words[0] == "max":
        return os.cpu_count() or 1
    return math.ceil(int(words[0]) / int(words[1]))
