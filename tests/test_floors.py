"""Who imports whom, and what a small machine must be able to do without."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlmc"
CONFIGS = ROOT / "tests" / "data" / "configs"

FLOORS = {
    "errors": 0,
    "schema": 0,
    "machine": 0,
    "bundle": 1,
    "backends": 2,
    "runtime": 3,
    "recipe": 4,
    "families": 4,
    "quantizers": 4,
    "passes": 4,
    "sources": 5,
    "plan": 5,
    "workspace": 5,
    "assembly": 5,
    "scope": 5,
    "job": 5,
    "asking": 5,
    "stages": 5,
    "compiler": 5,
    "demo": 6,
    "serve": 6,
    "cli": 6,
    "__main__": 7,
}
# Siblings that read one another, named one by one: an arrow here is a decision.
ALLOWED = {
    ("schema", "errors"),
    ("passes", "quantizers"),
    ("assembly", "plan"),
    ("assembly", "sources"),
    ("assembly", "workspace"),
    ("compiler", "assembly"),
    ("compiler", "job"),
    ("compiler", "plan"),
    ("compiler", "scope"),
    ("scope", "plan"),
    ("job", "plan"),
    ("job", "sources"),
    ("job", "workspace"),
    ("asking", "job"),
    ("asking", "scope"),
    ("asking", "workspace"),
    ("stages", "asking"),
    ("stages", "assembly"),
    ("stages", "job"),
    ("stages", "scope"),
    ("stages", "workspace"),
    ("compiler", "sources"),
    ("compiler", "stages"),
    ("compiler", "workspace"),
    ("cli", "demo"),
    ("cli", "serve"),
}
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "onnxsim", "safetensors")

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)
sys.meta_path.insert(0, Blocker())
"""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names imported anywhere in a file; type-only imports are names, not dependencies."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = str(node.module)
            if module == "vlmc":
                yield from ((f"vlmc.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def wrong_imports(files: list[Path]) -> list[str]:
    wrong = []
    for path in files:
        own = part(path)
        for name, line in imports(path):
            words = name.split(".")
            if words[0] != "vlmc" or len(words) == 1 or words[1] in {own, "__version__"}:
                continue
            other = words[1]
            lower = FLOORS[other] < FLOORS[own]
            if not lower and (own, other) not in ALLOWED:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return wrong


def test_every_part_has_a_floor() -> None:
    parts = {part(path) for path in modules()} - {"__init__"}
    assert parts <= FLOORS.keys()


def test_imports_go_down() -> None:
    assert wrong_imports(modules()) == []


def test_an_import_that_goes_up_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = tmp_path / "vlmc" / "runtime" / "bad.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("def f():\n    from vlmc.families import FAMILIES\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "vlmc")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert wrong_imports([planted]) == ["vlmc/runtime/bad.py:2 imports vlmc.families"]


def run(code: str, *words: str, hidden: tuple[str, ...] = HEAVY) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {hidden!r}\n{BLOCKER}\n{code}", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


MAIN = "import sys, vlmc.cli\nsys.exit(vlmc.cli.main())"


def test_help_loads_next_to_nothing() -> None:
    hidden = (*HEAVY, "numpy", "onnxruntime", "PIL", "tokenizers", "jinja2", "huggingface_hub")
    text = run(MAIN, "--help", hidden=hidden)
    for word in ("build", "run", "check", "models"):
        assert f"  {word} " in text


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2-vl-2b"])
def test_check_works_without_torch(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {CONFIGS / name}\nprecision: int4\n")
    plan = json.loads(run(MAIN, "check", str(recipe), "--json"))
    assert plan["unknown"] is None
    assert "valid" in run(MAIN, "check", str(recipe))


def test_python_m_vlmc_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlmc", "models"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "llava" in done.stdout


def test_models_works_without_torch() -> None:
    assert "llava" in run(MAIN, "models")


@pytest.mark.parametrize("name", ["vlmc.runtime", "vlmc.bundle", "vlmc.backends"])
def test_the_runtime_imports_nothing_heavy(name: str) -> None:
    code = f"import sys, {name}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code, hidden=()).strip() == "[]"
