"""How many threads are worth using: physical cores this process may run on."""

import math
import os
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """Physical cores in this process's affinity mask, within its container's CPU quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    cores = {_siblings(cpu) for cpu in allowed}
    count = len(cores) or os.cpu_count() or 1
    return max(1, min(count, _quota()))


def _siblings(cpu: int) -> str:
    path = Path(_SIBLINGS.format(cpu))
    return path.read_text().strip() if path.is_file() else str(cpu)


def _quota() -> int:
    words = _QUOTA.read_text().split() if _QUOTA.is_file() else []
    if len(words) != 2 or words[0] == "max":
        return os.cpu_count() or 1
    return math.ceil(int(words[0]) / int(words[1]))
