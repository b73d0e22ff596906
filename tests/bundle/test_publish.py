"""Writing bundles: same bytes, never half a bundle, whoever dies when."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc.bundle.publish import seal, write_bundle
from vlmc.bundle.store import read_bundle, verify_digests
from vlmc.errors import VlmcError

ROOT = Path(__file__).parents[2]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_build_gives_the_same_bytes_anywhere(tmp_path):
    code = "from pathlib import Path; from tests.tiny_bundle import tiny_bundle\n"
    code += "import sys; print(tiny_bundle(Path(sys.argv[1])))"
    folders = []
    for place, seed in (("a", "1"), ("longer/b", "2")):
        words = [sys.executable, "-c", code, str(tmp_path / place)]
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(ROOT),
            "TZ": "Asia/Tokyo",
        }
        out = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
        folders.append(Path(out.stdout.strip()))
    assert folders[0].name == folders[1].name
    assert contents(folders[0]) == contents(folders[1])


def test_latest_follows_the_last_build_and_older_versions_stay(tmp_path):
    first = tiny_bundle(tmp_path, seed=1)
    assert os.readlink(tmp_path / "tiny/latest") == first.name
    second = tiny_bundle(tmp_path, seed=2)
    assert os.readlink(tmp_path / "tiny/latest") == second.name
    assert entries(tmp_path / "tiny") == sorted([first.name, second.name, "latest"])
    assert tiny_bundle(tmp_path, seed=1) == first
    assert read_bundle(tmp_path / "tiny").folder == first


def test_a_version_that_is_there_is_not_written_again(tmp_path):
    folder = tiny_bundle(tmp_path)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert tiny_bundle(tmp_path) == folder
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before


@pytest.mark.parametrize("damage", ["flip", "missing", "manifest", "extra"])
def test_a_damaged_version_is_replaced(tmp_path, damage):
    folder = tiny_bundle(tmp_path)
    good = contents(folder)
    weights = folder / "weights/all.bin"
    if damage == "flip":
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "more").write_bytes(b"")
    assert tiny_bundle(tmp_path) == folder
    assert contents(folder) == good
    assert entries(tmp_path / "tiny") == sorted([folder.name, "latest"])


def test_two_bundles_never_share_a_version(tmp_path, monkeypatch):
    folder = tiny_bundle(tmp_path, seed=1)
    other = tiny_bundle(tmp_path / "other", seed=2)
    monkeypatch.setattr("vlmc.bundle.publish.os.rename", os.rename)
    os.rename(other, folder.parent / "moved")
    os.rename(folder, folder.parent / "kept")
    os.rename(folder.parent / "moved", folder)
    with pytest.raises(VlmcError, match="taken by another bundle"):
        tiny_bundle(tmp_path, seed=1)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_build_that_fails_leaves_nothing(tmp_path, failure):
    def goldens(folder, draft):
        raise failure("half way")

    with pytest.raises(failure):
        tiny_bundle(tmp_path / "made" / "too", goldens=goldens)
    assert entries(tmp_path) == []


def test_a_build_that_fails_leaves_what_was_there(tmp_path):
    def goldens(folder, draft):
        raise RuntimeError("half way")

    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError):
        tiny_bundle(tmp_path / "empty", goldens=goldens)
    assert entries(tmp_path / "empty") == []
    first = tiny_bundle(tmp_path / "full", seed=1)
    with pytest.raises(RuntimeError):
        tiny_bundle(tmp_path / "full", seed=2, goldens=goldens)
    assert entries(tmp_path / "full" / "tiny") == sorted([first.name, "latest"])


def test_builds_take_no_folder_away_from_one_another(tmp_path, monkeypatch):
    def beside(folder, draft):
        tiny_bundle(tmp_path / "out", seed=1)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        tiny_bundle(tmp_path / "out", seed=2, goldens=beside)
    there = read_bundle(tmp_path / "out" / "tiny").folder

    make, taken = tempfile.mkdtemp, []

    def taken_away(**words):
        if not taken:  # by a build that failed, just now
            shutil.rmtree(words["dir"])
            taken.append(words["dir"])
        return make(**words)

    monkeypatch.setattr("vlmc.bundle.publish.tempfile.mkdtemp", taken_away)
    assert tiny_bundle(tmp_path / "out", seed=1) == there
    assert taken


@pytest.mark.parametrize("step", ["rename", "replace", "fsync"])
def test_a_system_call_that_fails_leaves_the_old_latest(tmp_path, monkeypatch, step):
    first = tiny_bundle(tmp_path, seed=1)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"vlmc.bundle.publish.os.{step}", fail)
        with pytest.raises(VlmcError, match="cannot write: No space left on device"):
            tiny_bundle(tmp_path, seed=2)
    assert read_bundle(tmp_path / "tiny").folder == first
    for name in entries(tmp_path / "tiny"):
        verify_digests(read_bundle(tmp_path / "tiny" / name))


@pytest.mark.parametrize("step", ["mkdtemp", "mkdir"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, step):
    def refuse(*args, **words):
        raise OSError(30, "Read-only file system", str(tmp_path / "out"))

    monkeypatch.setattr(Path if step == "mkdir" else tempfile, step, refuse)
    with pytest.raises(VlmcError, match="cannot write: Read-only file system") as caught:
        tiny_bundle(tmp_path / "out")
    assert caught.value.at == str(tmp_path / "out")
    monkeypatch.undo()
    assert entries(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code = "from pathlib import Path; from tests.tiny_bundle import tiny_bundle\n"
    code += "import sys; tiny_bundle(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )
    assert "File too large" in done.stderr
    assert entries(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from tests.tiny_bundle import tiny_bundle
def wait(folder, draft):
    print(folder, flush=True)
    time.sleep(60)
tiny_bundle(Path(sys.argv[1]), goldens=wait)
"""


def start_waiting(out: Path) -> tuple[subprocess.Popen, Path]:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def test_a_killed_build_is_invisible_and_swept_by_the_next(tmp_path):
    child, partial = start_waiting(tmp_path)
    try:
        assert partial.is_dir()
        finished = tiny_bundle(tmp_path, seed=1)  # beside a running one
        assert partial.is_dir()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert partial.is_dir()
    assert read_bundle(tmp_path / "tiny").folder == finished
    assert tiny_bundle(tmp_path, seed=1) == finished
    assert entries(tmp_path / "tiny") == sorted([finished.name, "latest"])


def test_builds_at_once_end_in_one_good_bundle(tmp_path):
    code = "from pathlib import Path; from tests.tiny_bundle import tiny_bundle\n"
    code += "import sys\nfor i in range(5): print(tiny_bundle(Path(sys.argv[1]), seed=i % 2))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, str(tmp_path)]
    children = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = set()
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        folders |= set(out.split())
    assert len(folders) == 2
    for folder in folders:
        verify_digests(read_bundle(Path(folder)))
    assert set(entries(tmp_path / "tiny")) == {Path(f).name for f in folders} | {"latest"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_called_latest_is_left_alone(tmp_path, kind):
    latest = tmp_path / "tiny/latest"
    latest.parent.mkdir()
    latest.mkdir() if kind == "folder" else latest.write_text("mine")
    with pytest.raises(VlmcError, match="not a symlink"):
        tiny_bundle(tmp_path)
    assert entries(latest.parent) == ["latest"]


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "/a", "latest"])
def test_names_that_are_no_folder_are_refused(tmp_path, name):
    with pytest.raises(VlmcError, match="name of a bundle"):
        write_bundle(tmp_path, name, lambda folder: {})
    assert entries(tmp_path) == []


def test_a_symlink_among_the_files_is_refused(tmp_path):
    def goldens(folder, draft):
        (folder / "processor/link").symlink_to("/etc/hostname")

    with pytest.raises(VlmcError, match="'processor/link' is not a regular file"):
        tiny_bundle(tmp_path, goldens=goldens)


def test_a_staged_folder_can_be_opened_before_it_is_published(tmp_path):
    seen = []

    def goldens(folder, draft):
        seen.append(seal(folder, draft).version)
        verify_digests(read_bundle(folder))
        (folder / "report").mkdir()
        (folder / "report/error.json").write_text("{}\n")

    published = tiny_bundle(tmp_path, goldens=goldens)
    assert published.name != seen[0]
    verify_digests(read_bundle(published))
    assert time.time() - published.stat().st_mtime < 60


def test_a_digest_that_is_known_is_believed_unless_the_size_differs(tmp_path):
    folder = tiny_bundle(tmp_path)
    there = read_bundle(folder).manifest
    draft = {k: getattr(there, k) for k in type(there).model_fields}
    name = next(iter(there.files))
    claimed = there.files[name].model_copy(update={"sha256": "0" * 64})
    assert seal(folder, draft, {name: claimed}).files[name] == claimed
    other = claimed.model_copy(update={"size": claimed.size + 1})
    assert seal(folder, draft, {name: other}).files == there.files
