"""Checkpoints, their oracles and their bundles: each made once, in the test that needs it first.

``tests/schedule.py`` has the tests of one checkpoint run in one worker, one after the other.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from tests.build.oracle import Expected, Oracle
from tests.build.questions import QUESTIONS
from tests.build.variants import SPECIAL, VARIANTS
from tests.checkpoints import MAKERS

RECIPE = "model: ./{name}\nctx-len: 320\nprefill-seq-len: 16\nchecks: {{reference: 'off'}}\n"
HEAVY = ("model", "oracle")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries: their words are not what is tested, and cost more than the work."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def replayed(command: Sequence[str], **_: Any) -> CompletedProcess[str]:
    """The process that a check starts, here: starting one takes longer than what it does."""
    from vlmc.runtime.replay import replay

    assert list(command[1:3]) == ["-m", "vlmc.runtime.replay"]
    replay(*(Path(word) for word in command[3:]))
    return CompletedProcess(command, 0, "", "")


@dataclass
class Workshop:
    """Everything below one folder; ``get`` makes a thing the first time it is asked for.

    ``cache`` is that of passes: workers share one.
    """

    folder: Path
    cache: Path
    made: dict[Any, Any] = field(default_factory=dict)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            with quiet():
                self.made[key] = make()
        return self.made[key]

    def open(self, kind: str, name: str, of: Any, make: Callable[[], Any]) -> Any:
        """The same for what holds memory: that of other checkpoints is let go."""
        for key in [key for key in self.made if key[0] in HEAVY and key[1] != name]:
            del self.made[key]
        return self.get((kind, name, of), make)

    def checkpoint(self, name: str) -> Path:
        makers = {**MAKERS, **VARIANTS, **SPECIAL}
        return self.get(("checkpoint", name), lambda: makers[name](self.folder / name))

    def recipe(self, name: str) -> Path:
        self.checkpoint(name)
        path = self.folder / f"{name}.yaml"
        path.write_text(RECIPE.format(name=name), encoding="utf-8")
        return path

    def build(self, name: str, *overrides: str, **options: Any) -> Any:
        """A fresh run of the build, cached passes reused.

        A build that compares itself with transformers starts a process for that, as users' do.
        """
        from vlmc.compiler import build
        from vlmc.recipe import load_recipe

        path = self.recipe(name)
        given = {"out": self.folder / "artifacts", "cache": self.cache, **options}
        compared = "checks.reference=auto" in overrides
        here = patch("vlmc.passes.ask.subprocess", SimpleNamespace(run=replayed))
        with quiet(), nullcontext() if compared else here:
            return build(load_recipe(path, overrides), at=str(path), **given)

    def model(self, name: str, *overrides: str) -> Any:
        """The opened bundle."""
        from vlmc.runtime import load

        return self.open(
            "model",
            name,
            overrides,
            lambda: load(self.build(name, *overrides).bundle, threads=1, spin=False),
        )

    def refused(self, name: str, question: str) -> bool:
        """Whether transformers refuses it: turns without a template, no picture or several."""
        try:
            self.expected(name, question)
        except ValueError:
            shown = len(QUESTIONS[question].shown)
            processor = self.oracle(name).processor
            alone = type(processor).__name__ == "FuyuProcessor"
            if processor.chat_template and shown and not (shown > 1 and alone):
                raise
            return True
        return False

    def oracle(self, name: str) -> Oracle:
        return self.open("oracle", name, None, lambda: Oracle(self.checkpoint(name)))

    def expected(self, name: str, question: str) -> Expected:
        asked = QUESTIONS[question]
        return self.get(
            ("expected", name, question),
            lambda: self.oracle(name).answer(asked.messages, asked.pictures()),
        )


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return Workshop(tmp_path_factory.mktemp("build"), shared / "cache")
