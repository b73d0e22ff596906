"""Checkpoints and every engine's files, each made once, with what that cost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.benchmarks.build_memory import family, memory
from tests.benchmarks.rivals.client import ROOT
from tests.benchmarks.rivals.models import MODELS
from tests.benchmarks.rivals.quiet import Quiet
from tests.benchmarks.rivals.variants import Place, Variant


class BuildError(Exception):
    """An engine's files could not be made; the message is what the tool said last."""


def checkpoint(place: Place) -> None:
    """Makes a model's checkpoint when it is not there."""
    if (place.checkpoint / "config.json").exists():
        return
    partial = place.folder / "checkpoint.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    MODELS[place.model].make(partial)
    partial.rename(place.checkpoint)


def built(variant: Variant, place: Place, quiet: Quiet, log: Path) -> dict[str, Any] | None:
    """Makes an engine's files: wall and CPU seconds, peak memory; None: they are there.

    Raises:
        BuildError: A command failed.
    """
    if all((place.folder / name).exists() for name in variant.out):
        return None
    spent = {"wall": 0.0, "cpu": 0.0, "peak": 0}
    for number, command in enumerate(variant.commands(place)):
        with quiet:
            cost = _run(command, quiet, log)
        # vlmc's second bundle differs in its number of rows only: the first one's cost is told.
        if number == 0 or variant.engine != "vlmc":
            spent["wall"] += cost["wall"]
            spent["cpu"] += cost["cpu"]
            spent["peak"] = max(spent["peak"], cost["peak"])
    return spent


def size(variant: Variant, place: Place) -> int:
    """Bytes of the files an engine opens."""
    total = 0
    for name in variant.out:
        path = (place.folder / name).resolve()
        files: Sequence[Path] = [path] if path.is_file() else list(path.rglob("*"))
        total += sum(one.stat().st_size for one in files if one.is_file())
    return total


def available() -> int:
    """Bytes of memory nobody uses."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else 0


def yielding(pid: int) -> None:
    """Gives a process the lowest priority: what takes too long stands in nobody's way."""
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)


def _run(command: list[str], quiet: Quiet, log: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started, before = time.perf_counter(), os.times()
    peaks: dict[int, int] = {}
    with log.open("ab") as output:
        at = output.tell()
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0), memory(pid)[0])
                if not quiet.kept:
                    yielding(pid)
            time.sleep(0.05)
    after = os.times()
    if process.returncode:
        said = log.read_bytes()[at:].decode(errors="replace").strip().splitlines()
        raise BuildError(said[-1] if said else f"exit code {process.returncode}")
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {
        "wall": time.perf_counter() - started,
        "cpu": cpu,
        "peak": max(peaks.values(), default=0),
    }
