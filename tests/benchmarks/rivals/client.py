"""A worker process, seen from the benchmark's side."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.session import Question

ROOT = Path(__file__).parents[3]


class EngineError(Exception):
    """An engine could not do what was asked; the message is what it said."""


@dataclass(frozen=True)
class Launch:
    """How an engine is started.

    Attributes:
        python: The interpreter of its environment.
        engine: Module in ``engines``.
        options: Its ``open_session`` options, ``threads`` and ``rows`` left out.
    """

    python: str
    engine: str
    options: dict[str, Any]


class Worker:
    """One process with one engine; ``open`` it first.

    Args:
        launch: How it is started.
        threads: Of the engine.
        rows: Most it will be asked to decode together.
        log: What it prints.
        patience: Seconds an answer may take.
    """

    def __init__(
        self, launch: Launch, *, threads: int, rows: int, log: Path, patience: float
    ) -> None:
        self._patience = patience
        self._options = {**launch.options, "threads": threads, "rows": rows}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self._log = log.open("ab")
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [launch.python, "-m", "tests.benchmarks.rivals.worker", launch.engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=ROOT,
        )

    def open(self) -> dict[str, Any]:
        """Wall and CPU seconds of opening.

        Raises:
            EngineError: It cannot be opened.
        """
        return self._ask({"do": "open", "options": self._options})

    def answer(self, question: Question) -> dict[str, Any]:
        """See ``worker.answer``.

        Raises:
            EngineError: It failed.
        """
        return self._ask({"do": "answer", "question": asdict(question)})

    def together(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Tokens and seconds of the steps that all rows shared.

        Raises:
            EngineError: It failed.
        """
        return self._ask({"do": "together", "questions": [asdict(one) for one in questions]})

    def cpu(self) -> float:
        """CPU seconds it used so far."""
        path = Path(f"/proc/{self._process.pid}/stat")
        if not path.exists():
            return 0.0
        fields = path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        pipe, source = self._process.stdin, self._process.stdout
        assert pipe is not None
        assert source is not None
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
            waiting, _, _ = select.select([source], [], [], self._patience)
            if not waiting:
                raise EngineError(f"no answer to '{request['do']}' in {self._patience:.0f} s")
            line = source.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            code = self._process.wait()
            raise EngineError(f"its process ended with code {code}; see {self._log.name}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"])
        return reply
