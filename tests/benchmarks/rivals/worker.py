"""One engine in a process of its own: JSON lines in, JSON lines out.

``python -m tests.benchmarks.rivals.worker ENGINE``, started by ``client.py``. It sleeps in a
read between two questions, so engines that wait cost the one that computes nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.session import Question, Session


def main(engine: str) -> None:
    # What libraries print goes to stderr: stdout is the protocol's alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                module = importlib.import_module(f"tests.benchmarks.rivals.engines.{engine}")
                with spent() as reply:
                    session = module.open_session(**request["options"])
            elif session is None:
                raise RuntimeError("nothing is open")
            elif request["do"] == "answer":
                reply = answer(session, Question(**request["question"]))
            else:
                questions = [Question(**one) for one in request["questions"]]
                with spent() as reply:
                    tokens, seconds = session.together(questions)
                reply |= {"tokens": tokens, "seconds": seconds}
        except Exception as error:
            # Whatever a rival cannot do is a row of the table, with its reason.
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".strip()}
        answers.write(json.dumps(reply) + "\n")


def answer(session: Session, question: Question) -> dict[str, Any]:
    """Seconds and CPU seconds of one answer, and where they went."""
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    mark()
    read = session.answer(question, mark)
    mark()
    started, first, ended = marks
    return {
        "prompt_tokens": read.prompt_tokens,
        "steps": question.tokens - 1,
        "vision": read.vision,
        "ttft": first[0] - started[0],
        "ttft_cpu": first[1] - started[1],
        "decode": ended[0] - first[0],
        "decode_cpu": ended[1] - first[1],
        # CLOCK_MONOTONIC is one clock for all processes: the parent knows when it started this one.
        "first_at": first[0],
        "peak": high_water(),
    }


@contextmanager
def spent() -> Iterator[dict[str, Any]]:
    """Wall and CPU seconds of a block."""
    found: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield found
    found |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def high_water() -> int:
    """The most memory this process held so far, in bytes (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main(sys.argv[1])
