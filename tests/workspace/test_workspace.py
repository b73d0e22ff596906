"""Results of passes: when they are made, found, refused and made again."""

import errno
import json
import os
import time
from pathlib import Path

import pytest

from tests.workspace.passes import Passes, alter
from vlmc.bundle.store import hash_file, hash_files
from vlmc.errors import VlmcError
from vlmc.workspace import Record, Workspace, cache_dir, store


def write(path, text):
    path.write_text(text)


def test_a_result_is_made_once_and_then_found(passes):
    first, second = passes(), passes()
    assert passes.runs == 1
    assert (first.hit, second.hit) == (False, True)
    assert first.digest == second.digest
    assert first.folder == second.folder
    assert (first.folder / "programs" / "a.onnx").read_text() == "graph"
    assert [event.kind for event in passes.events] == ["started", "finished", "finished"]
    assert sorted(first.files) == ["b.bin", "programs/a.onnx"]


def test_what_a_pass_hashed_is_not_read_again(passes, monkeypatch):
    whole = hash_file(passes().folder / "b.bin")
    read = []

    def spy(paths):
        read.extend(path.name for path in paths)
        return hash_files(paths)

    def fn(folder):
        (folder / "a.bin").write_bytes(b"others")
        (folder / "b.bin").write_bytes(bytes(range(256)) * 16)
        return {"b.bin": whole}

    monkeypatch.setattr(store, "hash_files", spy)
    made = passes.workspace.step("weights", fn, options={}, code=1)
    assert read == ["a.bin"]
    assert made.files == {"a.bin": hash_file(made.folder / "a.bin"), "b.bin": whole}


def test_another_process_finds_it(passes, tmp_path):
    artifact = passes()
    again = Passes(tmp_path / "cache")
    assert again().digest == artifact.digest
    assert again.runs == 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": "simplify"},
        {"inputs": ("0" * 64,)},
        {"options": {"ctx-len": 3000}},
        {"libraries": ("numpy",)},
        {"libraries": ("python",)},
        {"code": 2},
        {"code": ("vlmc.errors",)},
    ],
)
def test_whatever_decides_the_result_is_in_the_key(passes, change):
    keys = {passes().key, passes(**change).key}
    assert len(keys) == 2
    assert all(len(key) == 64 for key in keys)
    assert passes.runs == 2


def test_the_order_of_options_is_not_in_the_key(passes):
    passes(options={"a": 1, "b": (2, 3)}, libraries=("numpy", "pydantic"))
    assert passes(options={"b": [2, 3], "a": 1}, libraries=("pydantic", "numpy")).hit


def test_the_order_of_inputs_is(passes):
    passes(inputs=("a", "b"))
    assert not passes(inputs=("b", "a")).hit


def test_equal_files_are_equal_inputs_whatever_made_them(passes):
    one, other = passes(options={"note": 1}), passes(options={"note": 2})
    assert one.key != other.key
    assert one.digest == other.digest
    assert passes("next", inputs=(one,)).key == passes("next", inputs=(other,)).key
    assert passes("next", inputs=(one.digest,)).hit


def test_options_that_are_no_json_are_the_compilers_fault(passes):
    with pytest.raises(TypeError):
        passes(options={"path": Path("x")})
    with pytest.raises(ValueError, match="JSON"):
        passes(options={"x": float("nan")})


def test_a_library_that_is_missing_says_what_to_install(passes):
    with pytest.raises(VlmcError, match=r"'no-such-distribution'.*not installed") as caught:
        passes(libraries=("no-such-distribution",))
    assert "pip install" in str(caught.value)


def test_what_the_key_is_made_of_is_written_beside_the_result(passes):
    artifact = passes(options={"block": 32}, libraries=("numpy",))
    result = json.loads((artifact.folder.parent / "result.json").read_text())
    assert result["made_from"]["pass"] == "export"
    assert result["made_from"]["options"] == {"block": 32}
    assert list(result["made_from"]["libraries"]) == ["numpy"]
    assert result["key"] == artifact.key


def test_records_say_what_each_pass_cost(passes):
    passes()
    passes()
    passes("next", kilobytes=1)
    made, found, following = passes.workspace.records
    assert [record.name for record in passes.workspace.records] == ["export", "export", "next"]
    assert (made.hit, found.hit, following.hit) == (False, True, False)
    assert made.size == 4096 + len("graph")
    assert following.size == 1024 + len("graph")
    assert made.seconds > 0
    assert made.peak > 1 << 20
    assert passes.events[1].record == made


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "remove", "add", "empty"])
@pytest.mark.parametrize("file", ["b.bin", "programs/a.onnx", "result.json"])
def test_a_damaged_entry_is_noticed_and_made_again(passes, damage, file):
    artifact = passes()
    path = artifact.folder.parent / file if file == "result.json" else artifact.folder / file
    content = path.read_bytes()
    path.chmod(0o644)
    if damage == "flip":
        at = content.index(b"export") if file == "result.json" else len(content) // 2
        if file == "result.json":
            at = content.index(b'"sha256": "') + 11
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "shorten":
        path.write_bytes(content[:-1] if file != "result.json" else content[:-3])
    elif damage == "lengthen":
        path.write_bytes(content + b"x")
    elif damage == "remove":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        (artifact.folder / "stray").write_text("")
    again = passes()
    assert (again.hit, passes.runs) == (False, 2)
    assert again.digest == artifact.digest
    assert len(passes.notices()) == 1
    assert "damaged" in passes.notices()[0]
    assert passes().hit
    assert len(passes.notices()) == 1


def test_a_flipped_byte_in_a_large_file_is_seen_when_asked(tmp_path):
    passes = Passes(tmp_path)
    artifact = passes(kilobytes=2048)
    alter(artifact)
    assert passes(kilobytes=2048).hit
    thorough = Passes(tmp_path, thorough=True)
    assert not thorough(kilobytes=2048).hit
    assert "b.bin was altered" in thorough.notices()[0]
    assert thorough(kilobytes=2048).hit


def test_finished_files_are_not_to_be_written(passes):
    artifact = passes()
    modes = [path.stat().st_mode & 0o777 for path in artifact.folder.rglob("*") if path.is_file()]
    assert modes == [0o444, 0o444]


def test_a_pass_that_fails_leaves_no_entry(passes):
    def fails(folder):
        (folder / "half").write_text("x")
        raise KeyError("a bug")

    for _ in range(2):
        with pytest.raises(KeyError):
            passes.workspace.step("bad", fails, options={}, code=1)
    assert sorted(path.name for path in (passes.root / "entries").iterdir()) == []
    assert sorted(path.name for path in (passes.root / "partial").iterdir()) == []
    assert passes().hit is False


def test_an_interrupt_leaves_no_entry(passes):
    def interrupted(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passes.workspace.step("slow", interrupted, options={}, code=1)
    assert not list((passes.root / "entries").iterdir())
    assert not list((passes.root / "partial").iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_to_mend(passes, number):
    def full(folder):
        raise OSError(number, os.strerror(number), str(folder / "big"))

    with pytest.raises(VlmcError, match="cannot write to the cache") as caught:
        passes.workspace.step("big", full, options={}, code=1)
    assert "VLMC_CACHE" in str(caught.value)


def test_a_passes_own_errors_stay_what_they_are(passes):
    def denied(folder):
        raise PermissionError(errno.EACCES, "denied", "elsewhere")

    with pytest.raises(PermissionError):
        passes.workspace.step("reads", denied, options={}, code=1)


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VlmcError, match="cannot write to the cache"):
        Workspace(tmp_path / "file" / "cache")
    with pytest.raises(VlmcError, match="cannot write to the cache"):
        Workspace(tmp_path / "file")


def test_links_are_no_result(passes):
    def links(folder):
        (folder / "weights").symlink_to("/etc/hostname")

    with pytest.raises(ValueError, match="neither a file nor a folder"):
        passes.workspace.step("links", links, options={}, code=1)
    assert not list((passes.root / "entries").iterdir())


def test_a_lazy_value_is_only_made_for_a_pass_that_misses(tmp_path):
    made = []

    def build():
        workspace = Workspace(tmp_path)
        module = workspace.lazy(
            "transform", lambda: made.append(1) or "module", inputs=("model",), options={}, code=1
        )
        for name in ("vision", "language"):
            workspace.step(
                name,
                lambda folder: write(folder / "x", module.value()),
                inputs=(module,),
                options={},
                code=1,
            )
        return workspace.records

    first, second = build(), build()
    assert made == [1]
    assert [record.name for record in first] == ["transform", "vision", "language"]
    assert [record.hit for record in first] == [False, False, False]
    assert [record.hit for record in second] == [True, True, True]
    assert second[0].seconds == 0


def test_the_time_of_a_lazy_value_is_its_own(tmp_path):
    workspace = Workspace(tmp_path)

    def slow(seconds, value):
        time.sleep(seconds)
        return value

    inner = workspace.lazy("load", lambda: slow(0.2, "a"), options={}, code=1)
    outer = workspace.lazy(
        "transform", lambda: slow(0.1, inner.value()), inputs=(inner,), options={}, code=1
    )
    artifact = workspace.step(
        "export",
        lambda folder: write(folder / "x", outer.value()),
        inputs=(outer,),
        options={},
        code=1,
    )
    load, transform, export = workspace.records
    assert 0.2 <= load.seconds < 0.3
    assert 0.1 <= transform.seconds < 0.2
    assert export.seconds < 0.1
    assert artifact.seconds == export.seconds
    written = json.loads((artifact.folder.parent / "result.json").read_text())
    assert written["seconds"] < 0.1


def test_a_lazy_value_passes_its_own_inputs_on(tmp_path):
    workspace = Workspace(tmp_path)
    keys = {
        workspace.lazy("t", int, inputs=(given,), options=options, code=code).digest
        for given, options, code in (("a", {}, 1), ("b", {}, 1), ("a", {"x": 1}, 1), ("a", {}, 2))
    }
    assert len(keys) == 4


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLMC_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "vlmc"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "vlmc"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_dir() == tmp_path / "caches" / "vlmc"
    monkeypatch.setenv("VLMC_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("VLMC_CACHE", "")
    assert cache_dir() == tmp_path / "caches" / "vlmc"


# Separate processes: one program, told what to do with its pass.


def test_a_record_is_a_value():
    record = Record("export", 1.0, False, 3, 4, "k")
    with pytest.raises(AttributeError):
        record.hit = True
