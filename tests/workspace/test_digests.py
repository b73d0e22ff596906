import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlmc
from vlmc.bundle.store import hash_file
from vlmc.workspace.digests import code_digest, files_digest, json_digest


def package(root, **texts):
    for name, text in texts.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Digests of modules of a package ``fakepkg`` written to disk."""
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "fakepkg"
    package(
        root,
        start="from fakepkg.direct import f\nimport json",
        direct="def f():\n    from fakepkg.table import ROWS\n    return ROWS",
        aside="X = 1",
        table__one="ONE = 1",
    )
    (root / "__init__.py").write_text("")
    (root / "table" / "__init__.py").write_text("from fakepkg.table import one\nROWS = [one.ONE]")

    def of(*names):
        return code_digest([f"fakepkg.{name}" for name in names])

    of.root = root
    return of


@pytest.mark.parametrize("changed", ["start", "direct", "table/__init__", "table/one"])
def test_a_change_anywhere_below_is_seen(digest, changed):
    before = digest("start")
    path = digest.root / f"{changed}.py"
    path.write_text(path.read_text() + "\n# changed")
    assert digest("start") != before


def test_a_change_elsewhere_is_not(digest):
    before = digest("start")
    (digest.root / "aside.py").write_text("X = 2")
    assert digest("start") == before
    assert digest("start", "aside") != before


def test_order_and_repetition_do_not_matter(digest):
    assert digest("start", "aside") == digest("aside", "start", "aside")


def test_nothing_is_imported_to_be_hashed(digest):
    (digest.root / "direct.py").write_text("raise SystemExit('imported')")
    digest("start")
    assert "fakepkg.direct" not in sys.modules


def test_imports_in_a_circle_end(digest):
    (digest.root / "direct.py").write_text("import fakepkg.start")
    digest("start")


def test_a_module_that_is_not_there(digest):
    with pytest.raises(ModuleNotFoundError, match=r"fakepkg\.absent"):
        digest("absent")
    with pytest.raises(ModuleNotFoundError):
        code_digest(["nosuchpackage.x"])


def test_a_quantizer_counts_for_the_pass_that_writes_weights(tmp_path):
    source = Path(vlmc.__file__).parent
    code = (
        "from vlmc.workspace.digests import code_digest;print(code_digest(['vlmc.passes.weights']))"
    )

    def run(root):
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    for path in source.rglob("*.py"):
        if "demo" not in path.parts:
            copy = tmp_path / "vlmc" / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    assert run(tmp_path) == run(source.parent)
    changed = tmp_path / "vlmc" / "quantizers" / "int4_block.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert run(tmp_path) != run(source.parent)


def test_files_digest_is_the_documented_rule(tmp_path):
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"")
    files = {name: hash_file(tmp_path / name) for name in ("b", "a")}
    assert files["b"].size == 3
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("a", b""), ("b", b"two"))
    )
    assert files_digest(files) == hashlib.sha256(lines.encode()).hexdigest()


def test_json_digest_knows_values_not_their_order():
    assert json_digest({"b": 1, "a": ["é", 2.5]}) == json_digest({"a": ("é", 2.5), "b": 1})
    values = [{"a": 1}, {"a": "1"}, {"a": True}, {"a": [1]}, {"a": None}, {}]
    assert len({json_digest(value) for value in values}) == len(values)
