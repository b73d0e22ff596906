"""Bundles on disk: the digest rule, what a reader refuses, what verify notices."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc.bundle.manifest import FileEntry
from vlmc.bundle.store import canonical_json, check_name, read_bundle, verify_digests
from vlmc.errors import VlmcError


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("built"))


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "copy")


def edit(folder: Path, change) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_bundle_reads_back_wherever_it_lies(folder):
    bundle = read_bundle(folder)
    verify_digests(bundle)
    assert bundle.manifest.version == read_bundle(folder).manifest.digest[:12]
    assert bundle.path("weights/all.bin").is_file()
    assert json.loads(bundle.read("processor/prompt.json"))["image_token"] == "<image>"
    with pytest.raises(VlmcError, match="lists no file 'other'"):
        bundle.path("other")


def test_the_digest_is_the_documented_one(built):
    values = json.loads((built / "manifest.json").read_bytes())
    whole = hashlib.sha256()
    listed = sorted(p.relative_to(built).as_posix() for p in built.rglob("*") if p.is_file())
    listed.remove("manifest.json")
    assert listed == sorted(values["files"])
    for name in listed:
        digest = hashlib.sha256((built / name).read_bytes()).hexdigest()
        assert values["files"][name] == {"sha256": digest, "size": (built / name).stat().st_size}
        whole.update(f"{digest}  {name}\n".encode())
    rest = {k: v for k, v in values.items() if k not in ("files", "digest", "version")}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, indent=1)
    whole.update(text.encode() + b"\n")
    assert values["digest"] == whole.hexdigest()
    assert built.name == values["version"] == whole.hexdigest()[:12]


def test_canonical_json_is_one_text_for_one_value():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == (
        '{\n "a": "é",\n "b": [\n  1,\n  2.5\n ]\n}\n'.encode()
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_a_name_folder_is_its_latest(built):
    assert read_bundle(built.parent).folder == built


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_what_is_no_bundle_is_refused(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("{}")
    with pytest.raises(VlmcError, match="not a bundle"):
        read_bundle(path)


def test_every_flipped_byte_is_noticed(folder):
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert "manifest.json" in names
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(VlmcError) as caught:
                verify_digests(read_bundle(folder))
            if name != "manifest.json":
                assert name in str(caught.value)
            assert "manifest" in str(caught.value) or name in str(caught.value)
        path.write_bytes(whole)
    verify_digests(read_bundle(folder))


def test_every_byte_of_the_manifest_counts(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
        with pytest.raises(VlmcError):
            verify_digests(read_bundle(folder))


def test_a_manifest_written_in_other_words_is_noticed(folder):
    edit(folder, lambda values: None)
    with pytest.raises(VlmcError, match=r"manifest\.json: its bytes"):
        verify_digests(read_bundle(folder))


def test_a_missing_file_is_refused(folder):
    (folder / "programs/vision.onnx").unlink()
    with pytest.raises(VlmcError, match=r"'programs/vision.onnx' is missing"):
        read_bundle(folder)


@pytest.mark.parametrize("size", [0, 10, -1])
def test_another_size_is_refused(folder, size):
    path = folder / "weights/all.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:size] if size >= 0 else whole + b"x")
    with pytest.raises(VlmcError, match=r"'weights/all.bin' has \d+ bytes, the manifest says \d+"):
        read_bundle(folder)


def test_a_file_that_goes_between_reading_and_verifying_is_named(folder):
    bundle = read_bundle(folder)
    (folder / "processor/prompt.json").unlink()
    with pytest.raises(VlmcError, match=r"processor/prompt\.json: missing"):
        verify_digests(bundle)


def test_a_file_that_is_not_listed_is_only_verifys_matter(folder):
    (folder / "weights/more.bin").write_bytes(b"x")
    bundle = read_bundle(folder)
    with pytest.raises(VlmcError, match=r"weights/more\.bin: not listed"):
        verify_digests(bundle)


BAD_NAMES = [
    "../outside",
    "weights/../../outside",
    "/etc/hostname",
    "weights//all.bin",
    "./weights/all.bin",
    "weights/.",
    "",
    "weights/",
    "C:/x",
    "weights\\all.bin",
    "weights/a\0b",
    "weights/a\nb",
    "a:b",
    "manifest.json",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_leave_the_folder_are_refused(folder, name):
    (folder.parent / "outside").write_bytes(b"")
    with pytest.raises(VlmcError):
        check_name(name)
    entry = FileEntry(sha256="0" * 64, size=0).model_dump()
    edit(folder, lambda values: values["files"].update({name: entry}))
    with pytest.raises(VlmcError):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["weights/all.bin", "goldens/größe.png", "a b/c-d_e.f"])
def test_ordinary_names_are_fine(name):
    check_name(name)


@pytest.mark.parametrize("name", ["weights/all.bin", "weights", "manifest.json"])
def test_a_symlink_is_refused_even_to_the_same_bytes(folder, name):
    moved = folder.parent / "moved"
    shutil.move(folder / name, moved)
    (folder / name).symlink_to(moved)
    with pytest.raises(VlmcError, match="symlink"):
        read_bundle(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder):
    (folder / "processor/prompt.json").unlink()
    (folder / "processor/prompt.json").mkdir()
    with pytest.raises(VlmcError, match="not a regular file"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (2, "newer.*update vlmc"),
        (0, "older.*rebuild"),
        (None, "no schema_version"),
        ("1", "no schema_version"),
        (True, "no schema_version"),
    ],
)
def test_another_schema_version_is_refused(folder, version, words):
    edit(folder, lambda values: values.update(schema_version=version))
    with pytest.raises(VlmcError) as caught:
        read_bundle(folder)
    import re

    assert re.search(words, str(caught.value), re.DOTALL)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema_version": 1}', "[" * 100_000, "\xff"])
def test_a_broken_manifest_is_refused(folder, text):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(VlmcError, match="manifest"):
        read_bundle(folder)


def test_an_unknown_or_mistyped_field_is_named(folder):
    edit(folder, lambda values: values["limits"].update(ctx_len="many"))
    with pytest.raises(VlmcError, match=r"limits\.ctx_len"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["prefill_seq_len", "ctx_len", "batch_size"])
def test_limits_of_nothing_are_refused(folder, name):
    edit(folder, lambda values: values["limits"].update({name: 0}))
    with pytest.raises(VlmcError, match=rf"limits\.{name}"):
        read_bundle(folder)


def test_programs_must_be_those_of_the_split(folder):
    edit(folder, lambda values: values.update(split="single"))
    with pytest.raises(VlmcError, match="split 'single' needs"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("weights", ["weights/no.bin"], "weights/no.bin"),
        ("file", "../outside.onnx", "../outside.onnx"),
        ("kernels", "../outside.onnx", "../outside.onnx"),
        ("kernels", "programs/no.onnx", "programs/no.onnx"),
    ],
)
def test_a_program_needs_listed_files(folder, key, value, named):
    edit(folder, lambda values: values["programs"]["vision"].update({key: value}))
    with pytest.raises(VlmcError, match=f"'vision' needs '{re.escape(named)}'"):
        read_bundle(folder)
