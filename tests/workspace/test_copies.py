"""Results on their way to a bundle: copied, read back, and made again where they are not right."""

import errno
import os
import shutil
import threading
import time

import pytest

from tests.workspace.passes import Passes, alter
from vlmc.errors import VlmcError
from vlmc.workspace import Workspace, begin_copies


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


def cut_short(read, write, left):
    return 0


def another_byte(read, write, left):
    content = bytearray(os.read(read, left))
    content[-1:] = bytes(255 - byte for byte in content[-1:])
    return os.write(write, content)


@pytest.mark.parametrize("lie", [cut_short, another_byte])
@pytest.mark.parametrize("sound", [False, True])
def test_a_disk_that_lies_is_told(passes, tmp_path, monkeypatch, lie, sound):
    artifact = passes(kilobytes=2048)
    monkeypatch.setattr(os, "copy_file_range", lie)
    copies = begin_copies(artifact, tmp_path / "bundle", sound=sound)
    with pytest.raises(VlmcError, match="other bytes than were written"):
        passes.workspace.materialize(copies)


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("size", [1, 700, 512 << 10, (512 << 10) + 1, 3 << 20])
def test_a_copy_is_read_back_piece_by_piece(passes, tmp_path, monkeypatch, size, sound):
    artifact = passes(kilobytes=2048 if size > 1 else 1)  # one byte at a time takes long
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda read, write, left: real(read, write, size))
    assert passes.workspace.knows(artifact)
    copies = begin_copies(artifact, tmp_path / "bundle", sound=sound)
    assert passes.workspace.materialize(copies) == artifact.files
    for path in artifact.files:
        assert (tmp_path / "bundle" / path).read_bytes() == (artifact.folder / path).read_bytes()


def test_materialize_copies_where_the_kernel_will_not(passes, tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refused)
    artifact = passes()
    passes.workspace.materialize(begin_copies(artifact, tmp_path / "bundle"))
    assert (tmp_path / "bundle" / "b.bin").read_bytes() == (artifact.folder / "b.bin").read_bytes()


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
