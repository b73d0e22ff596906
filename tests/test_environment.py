"""What a fresh machine relies on: declared dependencies, package data, commands that are run."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlmc"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BASE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
OWNERS = importlib.metadata.packages_distributions()  # of modules: slow to ask for
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match}


def third_party(path: Path) -> set[str]:
    """Distributions whose modules a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    others = modules - sys.stdlib_module_names - {"vlmc"}
    return {OWNERS.get(module, [module])[0].lower().replace("_", "-") for module in others}


def test_whatever_is_imported_is_declared() -> None:
    declared = names(BASE) | names(EXTRAS["build"])
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in PACKAGE.rglob("*.py")
        for name in third_party(path) - declared
    }
    assert undeclared == set()


@pytest.mark.parametrize("part", ["bundle", "backends/__init__.py", "runtime"])
def test_the_runtime_needs_the_base_dependencies_alone(part: str) -> None:
    place = PACKAGE / part
    files = place.rglob("*.py") if place.is_dir() else [place]
    assert {name for path in files for name in third_party(path)} <= names(BASE)


def test_the_base_dependencies_build_nothing() -> None:
    assert not names(BASE) & names(EXTRAS["build"])


def test_every_data_file_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["vlmc"]
    data = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".cpp", ".h", ".so"}
    ]
    assert [name for name in data if not any(fnmatch(name, p) for p in patterns)] == []
    assert {"py.typed", "demo/model/config.json", "demo/samples/questions.json"} <= set(data)
    [(_, [recipe])] = PROJECT["tool"]["setuptools"]["data-files"].items()
    assert (ROOT / recipe).is_file()


def test_every_source_of_the_kernels_is_compiled_and_packaged() -> None:
    for module in PROJECT["tool"]["setuptools"]["ext-modules"]:
        for key, suffix in (("sources", ".cpp"), ("depends", ".h")):
            files = PACKAGE.rglob(f"*{suffix}")
            there = sorted(path.relative_to(ROOT).as_posix() for path in files)
            assert module[key] == there
            assert there
        assert module["optional"]


def test_the_readme_has_one_command_for_each_purpose() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if line.startswith("python3 -m venv ")]
    assert [line.rpartition(" && ")[2] for line in commands] == [
        ".venv/bin/vlmc demo",
        ".venv/bin/pytest -n 2",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_everyone_can_run(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    for job in jobs:
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
        assert all(step["run"].startswith(".ci/run") for step in job["steps"] if "run" in step)


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    """By itself pytest does not enter a folder called build."""
    skipped = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    inner = {part for folder in folders for part in folder.relative_to(ROOT).parts}
    assert "build" in inner
    assert not [name for name in inner for pattern in skipped if fnmatch(name, pattern)]
