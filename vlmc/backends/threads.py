"""How many threads are worth using, when they may wait busily, and which go first."""

import math
import os
import sys
import threading
from pathlib import Path

from vlmc.machine import cores, processors

_LOAD = Path("/proc/loadavg")  # averages, then running/existing threads


def default_threads() -> int:
    """One for each physical core this process may run on, within its container's CPU quota."""
    return max(1, min(cores(), math.ceil(processors())))


def busy(threads: int) -> bool:
    """Whether ``threads`` that spin would want more than is left of the processors, now."""
    if threads > processors():
        return True  # a spinning thread takes the time of one that works
    words = _LOAD.read_text().split() if _LOAD.is_file() else []
    if len(words) < 4:
        return False
    running = int(words[3].partition("/")[0]) - 1  # this thread runs
    return running + threads > (os.cpu_count() or 1)  # both count the host's


def step_back() -> None:
    """Lowers this thread's priority, where threads have one of their own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = min(19, os.getpriority(os.PRIO_PROCESS, thread) + 10)
        os.setpriority(os.PRIO_PROCESS, thread, nice)
