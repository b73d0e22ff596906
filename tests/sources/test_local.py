"""Local model folders: read, checked, digested, refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.recipe import load_recipe
from vlmc.sources import SourceFolder, check_weights, digests, read_checkpoint, resolve


def source(folder: Path, *, weights: bool = True) -> SourceFolder:
    path = folder.parent / "r.yaml"
    path.write_text(f"model: ./{folder.name}\n")
    return resolve(load_recipe(path), weights=weights)


def header(folder: Path, value: object, tail: bytes = b"") -> None:
    raw = json.dumps(value).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + tail)


def test_a_folder_is_known_by_content_not_path(model: Path) -> None:
    (model / "notes.md").write_text("no part of a build")
    (model / "runs").mkdir()
    found = source(model)
    assert (found.model, found.revision, found.folder) == ("local", None, model)
    assert "notes.md" not in found.files
    assert found.files == tuple(sorted(found.files))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found.files)


def test_a_plan_needs_json_alone(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "tokenizer.json").unlink()
    assert source(model, weights=False).folder == model
    assert read_checkpoint(model, tokenizer=False).config["model_type"] == "llava"
    with pytest.raises(VlmcError, match=r"there is no tokenizer\.json"):
        read_checkpoint(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "y.ckpt"])
def test_pickles_are_refused_with_the_command_that_converts_them(model: Path, name: str) -> None:
    (model / name).write_bytes(b"pickle")
    assert source(model).folder == model
    (model / "model.safetensors").unlink()
    for weights in (True, False):
        with pytest.raises(VlmcError, match="the weights are pickles") as caught:
            source(model, weights=weights)
        assert name in str(caught.value)
        assert f"from_pretrained('{model}').save_pretrained('converted')" in str(caught.value)


def test_training_state_is_not_mistaken_for_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "training_args.bin").write_bytes(b"pickle")
    assert source(model, weights=False).folder == model


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.json", None, "there is no config.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "a mapping is expected"),
        ("config.json", "[" * 100_000, "nested too deep"),
        ("config.json", "{}", "there is no 'model_type'"),
        ("config.json", '{"model_type": 3}', "there is no 'model_type'"),
        ("config.json", '{"model_type": "lava"}', "did you mean 'llava'?"),
        ("config.json", '{"model_type": "x", "auto_map": {}}', "does not run remote code"),
        (
            "config.json",
            '{"model_type": "llava", "quantization_config": {}}',
            "config.json: quantization_config: this checkpoint is quantized already",
        ),
        (
            "config.json",
            '{"model_type": "llava", "text_config": {"quantization_config": {}}}',
            "text_config.quantization_config",
        ),
        ("preprocessor_config.json", None, "there is no image processor"),
        ("preprocessor_config.json", "{]", "preprocessor_config.json:1: not valid JSON"),
        ("generation_config.json", '{"a":', "generation_config.json"),
    ],
)
def test_broken_folders(model: Path, name: str, text: str | None, expected: str) -> None:
    (model / name).unlink()
    if text is not None:
        (model / name).write_text(text)
    with pytest.raises(VlmcError) as caught:
        read_checkpoint(model)
    assert expected in str(caught.value)


def test_text_that_is_no_utf8(model: Path) -> None:
    (model / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(VlmcError, match="not a text in UTF-8"):
        read_checkpoint(model)


def test_remote_code_of_a_known_family_is_left_alone(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Evil"}, "_attn_implementation_internal": "a/b"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text("raise SystemExit('remote code ran')")
    assert read_checkpoint(model).config["model_type"] == "llava"
    assert "evil.py" not in source(model).files


def test_the_image_processor_may_lie_in_processor_config(model: Path) -> None:
    images = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").unlink()
    (model / "processor_config.json").write_text(json.dumps({"image_processor": images}))
    assert read_checkpoint(model).image_processor == images


def test_weights_are_indexed(model: Path) -> None:
    assert check_weights(model)["w"].shape == (2, 2)


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3"])
def test_quantized_weights_are_refused(model: Path, dtype: str) -> None:
    header(model, {"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}, bytes(4))
    with pytest.raises(VlmcError, match=f"'w' is stored as {dtype}: this checkpoint is quantized"):
        check_weights(model)


def test_position_tables_are_no_weights(model: Path) -> None:
    ids = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    header(model, {"position_ids": ids}, bytes(8))
    with pytest.raises(VlmcError, match="there are no weights"):
        check_weights(model)


def test_truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VlmcError, match=r"model\.safetensors"):
        check_weights(model)


def test_a_missing_shard(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(VlmcError, match="model-00001-of-00002"):
        check_weights(model)


def test_digests_are_sha256_and_remembered_while_files_stay(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    found = source(model)
    for path in model.iterdir():
        os.utime(path, (1, 1))
    assert digests(found, cache=cache) == {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in found.files
    }
    assert not list(cache.rglob("*.json"))
    # A file is remembered once its last change is no longer recent.
    monkeypatch.setattr("vlmc.sources.hashes._SETTLED_SECONDS", -1)
    first = digests(found, cache=cache)
    entries = sorted((cache / "digests").iterdir())
    assert len(entries) == len(found.files)
    assert digests(found, cache=cache) == first
    weights = model / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    os.utime(weights, (1, 1))
    again = digests(found, cache=cache)
    assert again["model.safetensors"] == hashlib.sha256(raw).hexdigest()
    assert again["model.safetensors"] != first["model.safetensors"]


@pytest.mark.parametrize("size", [0, 1, 1 << 14, (1 << 14) + 1, 5 << 14])
def test_mapped_files_have_the_same_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("vlmc.sources.hashes._BLOCK", 1 << 14)
    raw = os.urandom(size)
    (tmp_path / "a").write_bytes(raw)
    found = digests(SourceFolder("local", None, tmp_path, ("a",), name="x"), mapped=True)
    assert found == {"a": hashlib.sha256(raw).hexdigest()}


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_becomes_shorter_while_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    monkeypatch.setattr("vlmc.sources.hashes._BLOCK", 1 << 14)
    path = tmp_path / "a"
    path.write_bytes(bytes(4 << 14))

    def cut_short(*args: object) -> None:
        os.truncate(path, 1 << 14)

    monkeypatch.setattr("vlmc.sources.hashes._ask_for", cut_short)
    source = SourceFolder("local", None, tmp_path, ("a",), name="x")
    with pytest.raises(VlmcError, match="changed while it was read") as caught:
        digests(source, mapped=mapped)
    assert caught.value.at == str(path)


def test_a_broken_digest_entry_is_not_believed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmc.sources.hashes._SETTLED_SECONDS", -1)
    cache = tmp_path / "cache"
    found = source(model)
    first = digests(found, cache=cache)
    for entry in (cache / "digests").iterdir():
        entry.write_text("{")
    assert digests(found, cache=cache) == first
