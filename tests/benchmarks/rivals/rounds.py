"""Interleaved rounds: every engine is asked the same question, one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.client import EngineError, Worker
from tests.benchmarks.rivals.disturbance import least_disturbed
from tests.benchmarks.rivals.quiet import Quiet
from tests.benchmarks.rivals.variants import ROWS, Place, Variant
from tests.benchmarks.rivals.workload import Workload

Note = Callable[[str, str, dict[str, Any]], None]  # engine, kind of figure, figures
WARM_UP = 1_000_000  # a round that is not counted
PAUSE = 0.3  # seconds for the threads of the engine before to fall asleep


def groups(memory: Mapping[str, float], room: float, reference: str) -> list[list[str]]:
    """Engines that fit in memory side by side; the reference is in every group.

    Args:
        memory: Bytes each one takes.
        room: Bytes there are; an engine that is larger is tried in a group of its own.
        reference: What the others are compared with.
    """
    made: list[list[str]] = []
    base = memory.get(reference, 0.0)
    left = 0.0
    for name, size in memory.items():
        if name == reference:
            continue
        if not made or size > left:
            made.append([reference] if reference in memory else [])
            left = room - base
        made[-1].append(name)
        left -= size
    return made or [[reference]]


def living(
    variants: Mapping[str, Variant],
    place: Place,
    workload: Workload,
    rounds: range,
    quiet: Quiet,
    log: Path,
    patience: float,
    note: Note,
    limits: Callable[[int], None],
) -> None:
    """Opens every engine in a process of its own, warms it up, and asks all of them in turns.

    ``limits(round)`` measures what the machine gives in that round.
    """
    workers: dict[str, Worker] = {}

    def drop(name: str, error: EngineError) -> None:
        note(name, "error", {"reason": str(error)})
        workers.pop(name).close()

    try:
        with quiet:
            for name, variant in variants.items():
                launch = variant.launch(place, ROWS)
                workers[name] = Worker(
                    launch, threads=place.threads, rows=ROWS, log=log, patience=patience
                )
                try:
                    workers[name].open()
                    workers[name].answer(workload.question(WARM_UP - 1))
                except EngineError as error:
                    drop(name, error)
                quiet.turn()
        for number in rounds:
            names = list(workers)
            turn = number % len(names)
            with quiet:
                limits(number)
                for name in names[turn:] + names[:turn]:
                    time.sleep(PAUSE)
                    try:
                        found = _turn(workers[name], workload, number)
                    except EngineError as error:
                        drop(name, error)
                        continue
                    if not quiet.kept:
                        print(f"{name}: round {number} was disturbed", file=sys.stderr)
                    else:
                        note(name, "rounds", {"round": number, **found})
                    quiet.turn()
    finally:
        for worker in workers.values():
            worker.close()


def _turn(worker: Worker, workload: Workload, number: int) -> dict[str, Any]:
    def measure(again: int) -> dict[str, Any]:
        # Another question each time, for engines that keep what they computed.
        seed = number + again * WARM_UP
        found = worker.answer(workload.question(seed))
        try:
            shared = worker.together(workload.rows(seed, ROWS))
            found |= {"rows_tokens": shared["tokens"], "rows_seconds": shared["seconds"]}
        except EngineError as error:
            found["rows_error"] = str(error)
        return found

    return least_disturbed(measure, worker.cpu)


def fresh(
    variants: Mapping[str, Variant],
    place: Place,
    workload: Workload,
    rounds: range,
    quiet: Quiet,
    log: Path,
    patience: float,
    note: Note,
) -> None:
    """Cold starts: a new process for one answer; its first token and its peak memory."""
    failed: set[str] = set()
    for number in rounds:
        with quiet:
            for name, variant in variants.items():
                if name in failed:
                    continue
                try:
                    found = _cold(variant, place, workload, number, log, patience)
                    if quiet.kept:
                        note(name, "cold", {"round": number, **found})
                except EngineError as error:
                    failed.add(name)
                    note(name, "error", {"reason": str(error)})
                quiet.turn()


def _cold(
    variant: Variant,
    place: Place,
    workload: Workload,
    number: int,
    log: Path,
    patience: float,
) -> dict[str, Any]:
    used = 0.0

    def measure(again: int) -> dict[str, Any]:
        nonlocal used
        question = workload.question(number + again * WARM_UP)
        launch = variant.launch(place, 1)
        worker = Worker(launch, threads=place.threads, rows=1, log=log, patience=patience)
        try:
            worker.open()
            found = worker.answer(question)
            return {"start": found["first_at"] - worker.started, "peak": found["peak"]}
        finally:
            used += worker.cpu()
            worker.close()

    return least_disturbed(measure, lambda: used)
