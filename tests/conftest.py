"""Options of a test run, and its share of the machine."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sample import one_in

ROOT = Path(__file__).parents[1]
# What only the build extra installs.
BUILD_EXTRA = ("onnx", "onnx_ir", "onnxscript", "onnxsim", "safetensors", "torch", "transformers")
ABSENT = frozenset(name for name in BUILD_EXTRA if importlib.util.find_spec(name) is None)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has one core; torch would start a thread for every core in every worker.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A run started in the background inherits this, and so would the commands that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--installed-only",
        action="store_true",
        help="leave out files that import a library of the build extra which is not installed",
    )
    parser.addoption(
        "--update-readme", action="store_true", help="write README.md's table of models"
    )
    parser.addoption(
        "--timm", metavar="FOLDER", help="compare towers with timm's, which is installed there"
    )
    parser.addoption(
        "--one-in",
        metavar="N",
        type=_at_least_one,
        default=1,
        help="of a test with more than N cases, one in N of them, the same in every run",
    )


def _at_least_one(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number from 1 on")
    return int(given)


@pytest.hookimpl(trylast=True)  # after -m and -k: of what they leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = one_in(config.getoption("--one-in"), (item.nodeid for item in items))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one checkpoint in one worker, unless another ``--dist`` is asked for."""
    if config.getoption("dist") != "load":
        return None
    # By name: what it imports for builds is nothing that every test needs (see below).
    return importlib.import_module("tests.schedule").ByCheckpoint(config, log)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.name == "test_timm.py" and not config.getoption("--timm"):
        return True
    if not config.getoption("--installed-only") or collection_path.suffix != ".py":
        return None
    return needs_absent_library(collection_path) or None


def needs_absent_library(path: Path) -> bool:
    """Whether a test file, its conftest or a test module they import needs a library of those."""
    waiting, seen = [path, path.parent / "conftest.py"], set()
    while waiting:
        here = waiting.pop()
        if here in seen or not here.is_file():
            continue
        seen.add(here)
        for name in _imports(here):
            top, _, rest = name.partition(".")
            if top in ABSENT:
                return True
            if top == "tests":
                module = ROOT.joinpath("tests", *rest.split("."))
                waiting += [module.with_suffix(".py"), module / "__init__.py"]
    return False


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
