"""How much of the machine others took while something was measured (Linux)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOLERATED = 0.1
TRIES = 3


def least_disturbed(
    measure: Callable[[int], dict[str, Any]], own: Callable[[], float]
) -> dict[str, Any]:
    """Measures again, a few times at most, while others take more than a tenth of the machine.

    Args:
        measure: Given the number of the try.
        own: CPU seconds the measured process used so far.

    Returns:
        The figures of the quietest try, with ``others``: their share of all cores.
    """
    best: dict[str, Any] = {}
    for number in range(TRIES):
        spent, used, started = busy(), own(), time.perf_counter()
        found = measure(number)
        wall = time.perf_counter() - started
        foreign = (busy() - spent) - (own() - used)
        found["others"] = max(0.0, foreign / (wall * (os.cpu_count() or 1)))
        if not best or found["others"] < best["others"]:
            best = found
        if best["others"] <= TOLERATED:
            break
    return best


def busy() -> float:
    """CPU seconds of all processes so far, and those another machine on this host took."""
    names, *_ = Path("/proc/stat").read_text().splitlines()
    user, nice, system, _idle, _waiting, irq, soft, steal = map(int, names.split()[1:9])
    ticks = user + nice + system + irq + soft + steal
    return ticks / float(os.sysconf("SC_CLK_TCK"))
