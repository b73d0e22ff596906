import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import vlmc
from vlmc.bundle.store import hash_file, hash_files
from vlmc.errors import VlmcError
from vlmc.workspace import Artifact, Event, Record, Workspace, begin_copies, cache_dir, store

SOURCE = str(Path(vlmc.__file__).parents[1])


class Passes:
    """A fake pass that counts its runs."""

    def __init__(self, root, **options):
        self.events: list[Event] = []
        self.root = root
        self.workspace = Workspace(root, self.events.append, **options)
        self.runs = 0

    def __call__(self, name="export", text="graph", kilobytes=4, **given) -> Artifact:
        def fn(folder):
            self.runs += 1
            (folder / "programs").mkdir()
            (folder / "programs" / "a.onnx").write_text(text)
            (folder / "b.bin").write_bytes(bytes(range(256)) * kilobytes * 4)

        arguments = {"inputs": (), "options": {}, "libraries": (), "code": 1, **given}
        return self.workspace.step(name, fn, **arguments)

    def notices(self):
        return [event.message for event in self.events if event.kind == "notice"]


def write(path, text):
    path.write_text(text)


@pytest.fixture
def passes(tmp_path):
    return Passes(tmp_path / "cache")


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


def test_materialize_copies_checks_and_lists(passes, tmp_path):
    artifact = passes()
    target = tmp_path / "bundle" / "programs"
    listed = passes.workspace.materialize(begin_copies(artifact, target))
    assert listed == artifact.files
    assert (target / "programs" / "a.onnx").read_text() == "graph"
    # What a user does to the bundle does not reach the cache.
    copy = target / "b.bin"
    assert copy.stat().st_ino != (artifact.folder / "b.bin").stat().st_ino
    copy.write_bytes(b"edited")
    assert passes().hit
    assert (artifact.folder / "b.bin").stat().st_size == 4096


def alter(artifact):
    """Flips a byte of a file too large to be hashed on every hit."""
    path = artifact.folder / "b.bin"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"\xff\xfe")


def test_materialize_ships_no_altered_byte(passes, tmp_path):
    content = (passes(kilobytes=2048).folder / "b.bin").read_bytes()
    again = Passes(tmp_path / "cache")
    artifact = again(kilobytes=2048)
    alter(artifact)
    listed = again.workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "b.bin").read_bytes() == content
    assert listed == artifact.files
    assert again.runs == 1
    assert "b.bin was altered" in again.notices()[0]
    assert [record.hit for record in again.workspace.records] == [False]


def test_nothing_is_made_from_an_altered_byte(passes, tmp_path):
    passes(kilobytes=2048)
    again = Passes(tmp_path / "cache")
    weights = again(kilobytes=2048)
    alter(weights)

    def following(folder):
        (folder / "copy").write_bytes((weights.folder / "b.bin").read_bytes())

    made = again.workspace.step("next", following, inputs=(weights,), options={}, code=1)
    assert made.files["copy"] == weights.files["b.bin"]
    assert again.runs == 1
    assert [record.hit for record in again.workspace.records] == [False, False]


def test_nothing_lazy_is_made_from_an_altered_byte(passes, tmp_path):
    passes(kilobytes=2048)
    again = Passes(tmp_path / "cache")
    weights = again(kilobytes=2048)
    alter(weights)
    value = again.workspace.lazy(
        "load", (weights.folder / "b.bin").read_bytes, inputs=(weights,), options={}, code=1
    ).value()
    assert value == bytes(range(256)) * 8192


def test_a_pass_made_again_must_give_the_same_bytes(tmp_path):
    def build(number):
        workspace = Workspace(tmp_path)

        def random(folder):
            (folder / "b.bin").write_bytes(bytes([number]) * (2 << 20))

        return workspace, workspace.step("random", random, options={}, code=1)

    build(1)
    workspace, artifact = build(2)
    assert artifact.hit
    alter(artifact)
    with pytest.raises(VlmcError, match="'random' does not give the same bytes twice"):
        workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))


def test_a_cache_emptied_during_the_build_is_filled_again(passes, tmp_path):
    artifact = passes()
    shutil.rmtree(artifact.folder)
    passes.workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "b.bin").stat().st_size == 4096
    shutil.rmtree(artifact.folder.parent)
    passes.workspace.materialize(begin_copies(artifact, tmp_path / "again"))
    assert (tmp_path / "again" / "b.bin").stat().st_size == 4096


def test_materialize_says_where_it_cannot_write(passes, tmp_path):
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(VlmcError, match=r"bundle/b\.bin: cannot write"):
        passes.workspace.materialize(begin_copies(passes(), tmp_path / "bundle"))


def test_a_disk_that_lies_is_told(passes, tmp_path, monkeypatch):
    artifact = passes()
    monkeypatch.setattr(os, "copy_file_range", lambda read, write, left: 0)
    with pytest.raises(VlmcError, match="other bytes than were written"):
        passes.workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))


def test_materialize_copies_where_the_kernel_will_not(passes, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refused)
    artifact = passes()
    passes.workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "b.bin").read_bytes() == (artifact.folder / "b.bin").read_bytes()


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
PROGRAM = """
import sys, time
from pathlib import Path
from vlmc.workspace import Workspace

root, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def tell(event):
    if event.kind == "notice":
        print(event.message, flush=True)

def fn(folder):
    with log.open("a") as file:
        file.write("run\\n")
    (folder / "half").write_text("x")
    if mode == "hang":
        print("building", flush=True)
        time.sleep(60)
    time.sleep(0.5)
    (folder / "whole").write_text("y")

artifact = Workspace(root, tell).step("race", fn, options={}, code=1)
print(artifact.digest, artifact.hit, flush=True)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def run(mode):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), str(tmp_path / "log"), mode],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process):
    out, _ = process.communicate(timeout=60)
    return out.splitlines()


def runs(tmp_path):
    return (tmp_path / "log").read_text().count("run")


def test_two_processes_make_a_result_once(tmp_path, start):
    outs = [finish(process) for process in [start("race") for _ in range(3)]]
    assert runs(tmp_path) == 1
    assert len({out[-1].split()[0] for out in outs}) == 1
    assert sorted(out[-1].split()[1] for out in outs) == ["False", "True", "True"]


def test_a_killed_builder_frees_its_key_and_leaves_no_entry(tmp_path, start):
    killed = start("hang")
    assert killed.stdout.readline().strip() == "building"
    waiting = start("race")
    assert waiting.stdout.readline().strip() == "another build is making it"
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    (line,) = finish(waiting)
    assert line.endswith("False")
    assert runs(tmp_path) == 2
    (entry,) = (tmp_path / "cache" / "entries").iterdir()
    assert sorted(path.name for path in (entry / "files").iterdir()) == ["half", "whole"]
    assert not list((tmp_path / "cache" / "partial").iterdir())


def test_what_a_killed_builder_left_is_swept_and_what_a_live_one_builds_is_not(tmp_path, start):
    killed = start("hang")
    assert killed.stdout.readline().strip() == "building"
    partial = tmp_path / "cache" / "partial"
    Workspace(tmp_path / "cache")
    assert len(list(partial.iterdir())) == 1
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert len(list(partial.iterdir())) == 1
    Workspace(tmp_path / "cache")
    assert not list(partial.iterdir())
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_ctrl_c_leaves_nothing(tmp_path, start):
    process = start("hang")
    assert process.stdout.readline().strip() == "building"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert not list((tmp_path / "cache" / "partial").iterdir())
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_threads_of_one_process_wait_for_each_other_too(tmp_path):
    built = []

    def build():
        def fn(folder):
            built.append(1)
            time.sleep(0.2)
            (folder / "x").write_text("x")

        Workspace(tmp_path).step("race", fn, options={}, code=1)

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_a_record_is_a_value():
    record = Record("export", 1.0, False, 3, 4, "k")
    with pytest.raises(AttributeError):
        record.hit = True


def test_copies_that_are_not_wanted_any_more_end(passes, tmp_path, monkeypatch):
    copying, going_on = threading.Event(), threading.Event()
    real = os.copy_file_range

    def slow(read, write, left):
        copying.set()
        going_on.wait()
        return real(read, write, 1000)

    monkeypatch.setattr(os, "copy_file_range", slow)
    copies = begin_copies(passes(), tmp_path / "bundle")
    copying.wait()
    stopping = threading.Thread(target=copies.stop)
    stopping.start()
    while not copies.stopping.is_set():
        time.sleep(0.01)
    going_on.set()
    stopping.join()
    assert [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()] == []
