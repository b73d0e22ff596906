import json
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.errors import VlmcError
from vlmc.passes import checkpoint
from vlmc.passes.checkpoint import TensorRef, read_rows
from vlmc.passes.checkpoint_index import checkpoint_files, find_tensor, read_index


def write_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def torch_tensors():
    import torch

    torch.manual_seed(0)
    return {
        "f32": torch.randn(7, 3, 2),
        "bf16": torch.randn(7, 5).bfloat16(),
        "f16": torch.randn(4, 3, 2, 2).half(),
        "f64": torch.randn(3, 3).double(),
        "vector": torch.randn(9).bfloat16(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "no_columns": torch.zeros(3, 0),
        "odd": torch.tensor([float("inf"), float("-inf"), -0.0, 1e-40]).bfloat16(),
        "ids": torch.arange(4),
    }


@pytest.fixture
def single(tmp_path, torch_tensors):
    from safetensors.torch import save_file

    save_file(torch_tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path, torch_tensors):
    from safetensors.torch import save_file

    names = sorted(torch_tensors)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: torch_tensors[name] for name in part}, tmp_path / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    return tmp_path


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_every_tensor_reads_as_torch_sees_it(layout, request, torch_tensors):
    index = read_index(request.getfixturevalue(layout))
    assert list(index) == sorted(torch_tensors)
    for name, tensor in torch_tensors.items():
        assert index[name].shape == tuple(tensor.shape)
        if name == "ids":
            continue
        expected = tensor.float().numpy().reshape(tensor.shape or (1,))
        np.testing.assert_array_equal(
            read_rows(index[name], 0, len(expected)), expected, strict=True
        )


@pytest.mark.parametrize("name", ["f32", "bf16", "f16", "f64", "vector"])
def test_rows_in_the_middle(single, torch_tensors, name):
    ref = read_index(single)[name]
    expected = torch_tensors[name].float().numpy()
    np.testing.assert_array_equal(read_rows(ref, 1, 3), expected[1:3], strict=True)
    assert read_rows(ref, 2, 2).shape == (0, *expected.shape[1:])


def test_rows_that_are_not_there_are_the_callers_fault(single):
    ref = read_index(single)["bf16"]
    for start, stop in ((-1, 2), (3, 2), (0, 8)):
        with pytest.raises(ValueError, match="no rows"):
            read_rows(ref, start, stop)


def test_float64_beyond_float32_is_infinite_without_a_warning(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.array([1e300, 1.0])}, tmp_path / "model.safetensors")
    rows = read_rows(read_index(tmp_path)["w"], 0, 2)
    np.testing.assert_array_equal(rows, np.array([np.inf, 1], np.float32))


def test_the_single_file_wins_as_in_transformers(sharded):
    write_file(sharded / "model.safetensors", {"alone": entry()}, bytes(24))
    assert list(read_index(sharded)) == ["alone"]
    assert [path.name for path in checkpoint_files(sharded)] == ["model.safetensors"]


def test_files_of_a_sharded_checkpoint(sharded):
    assert [path.name for path in checkpoint_files(sharded)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_integers_and_eight_bit_floats_are_no_weights(tmp_path, single):
    with pytest.raises(VlmcError, match="'ids' is stored as I64") as caught:
        read_rows(read_index(single)["ids"], 0, 1)
    assert "BF16" in str(caught.value)
    write_file(tmp_path / "model.safetensors", {"w": entry("F8_E4M3", (4,), (0, 4))}, bytes(4))
    with pytest.raises(VlmcError, match="stored as F8_E4M3"):
        read_rows(read_index(tmp_path)["w"], 0, 4)


def test_four_bit_floats_are_measured_in_bits(tmp_path):
    write_file(tmp_path / "model.safetensors", {"w": entry("F4", (4,), (0, 2))}, bytes(2))
    assert read_index(tmp_path)["w"].nbytes == 2


def test_unknown_names_suggest_the_nearest(single):
    with pytest.raises(VlmcError, match="no tensor 'vectr'") as caught:
        find_tensor(read_index(single), "vectr")
    assert "did you mean 'vector'?" in str(caught.value)
    with pytest.raises(VlmcError, match="another model"):
        find_tensor({}, "x")


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": entry()}, bytes(23), "truncated: tensor 'w' ends at byte"),
        ({"w": entry(offsets=(0, 20))}, bytes(24), "cannot lie in bytes 0 to 20"),
        ({"w": entry(offsets=(24, 0))}, bytes(24), "cannot lie in bytes 24 to 0"),
        ({"w": entry(offsets=(-24, 0))}, bytes(24), "cannot lie in bytes -24 to 0"),
        ({"w": entry(shape=(2, -3))}, bytes(24), r"has the shape \[2, -3\]"),
        ({"w": entry(shape=(2, 3.0))}, bytes(24), "has the shape"),
        ({"w": entry(dtype="Q4")}, bytes(24), "unknown dtype 'Q4'"),
        ({"w": {"dtype": "F32", "shape": [2, 3]}}, bytes(24), "'w' lacks dtype, shape"),
        ({"w": [1]}, b"", "'w' lacks dtype, shape"),
        ({"w": entry(offsets=(0, 24, 48))}, bytes(48), "'w' lacks dtype, shape"),
        (b'{"w": {}, "w": {}}', b"", "'w' appears twice"),
        (b"{not json", b"", "header is broken"),
        (b"\xff\xfe{}", b"", "header is broken"),
        (b"[1, 2]", b"", "not a JSON object"),
        (b"[" * 100_000, b"", "header is broken"),
    ],
)
def test_broken_headers_are_named(tmp_path, header, data, message):
    path = write_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(VlmcError, match=message) as caught:
        read_index(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: it holds 0 bytes"),
        (b"\x08\x00\x00", "truncated: it holds 3 bytes"),
        (struct.pack("<Q", 500) + b"{}", "truncated: it ends inside its header of 500 bytes"),
        (b"<!DOCTYPE html><html><body>Sign in", "an HTML page"),
        (b"\n  <html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a git-lfs pointer"),
        (b"PK\x03\x04 a zip file of pickles", "no safetensors file"),
        (bytes(64), "no safetensors file"),
    ],
)
def test_files_that_are_no_weights_are_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(VlmcError, match=message):
        read_index(tmp_path)


@settings(max_examples=300, deadline=None)
@given(
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    header=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4),
                st.dictionaries(
                    st.sampled_from(["w", "dtype", "shape", "data_offsets", "F32"]), inner
                ),
            ),
        ).map(lambda value: json.dumps(value).encode()),
    ),
    data=st.binary(max_size=30),
)
def test_whatever_the_bytes_are_the_answer_is_tensors_or_one_error(
    tmp_path_factory, length, header, data
):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    start = struct.pack("<Q", len(header) if length is None else length)
    (folder / "model.safetensors").write_bytes(start + header + data)
    try:
        index = read_index(folder)
    except VlmcError:
        return
    for ref in index.values():
        assert ref.begin + ref.nbytes <= 8 + len(header) + len(data)


def test_a_file_that_shrinks_after_its_header_was_read(single):
    ref = read_index(single)["odd"]
    with ref.path.open("r+b") as file:
        file.truncate(ref.begin + 2)
    with pytest.raises(VlmcError, match="truncated: inside tensor 'odd'"):
        read_rows(ref, 0, 4)
    ref.path.unlink()
    with pytest.raises(VlmcError, match="cannot read tensor 'odd': No such file"):
        read_rows(ref, 0, 4)


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(VlmcError, match=r"'model-00002-of-00002.*' is missing"):
        read_index(sharded)


def test_an_index_that_names_a_tensor_its_shard_lacks(sharded):
    place = sharded / "model.safetensors.index.json"
    index = json.loads(place.read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    place.write_text(json.dumps(index))
    with pytest.raises(VlmcError, match="'ghost' is not in shard"):
        read_index(sharded)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/x.safetensors", "a/b", ".."])
def test_an_index_cannot_point_out_of_its_folder(sharded, shard):
    place = sharded / "model.safetensors.index.json"
    place.write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(VlmcError, match=r"does not lie beside the index|is missing"):
        read_index(sharded)


@pytest.mark.parametrize(
    "text", ["", "<html>", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}',
             '{"weight_map": {"w": 3}}']
)  # fmt: skip
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(VlmcError, match="not an index of safetensors shards"):
        read_index(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "y.ckpt", "z.pkl"])
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04never read")
    with pytest.raises(VlmcError, match=rf"pickles \({name}\).*refused") as caught:
        read_index(tmp_path)
    assert 'python -c "from transformers import' in str(caught.value)
    assert "save_pretrained('.')" in str(caught.value)


def test_folders_without_weights(tmp_path):
    with pytest.raises(VlmcError, match="no such folder"):
        read_index(tmp_path / "absent")
    with pytest.raises(VlmcError, match="no weights are here"):
        read_index(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(VlmcError, match=r"found only model-00001-of-00002\.safetensors"):
        read_index(tmp_path)


def test_reading_imports_no_heavy_library():
    import subprocess
    import sys
    from pathlib import Path

    import vlmc

    code = (
        "import sys, vlmc.passes.checkpoint, vlmc.passes.weights, vlmc.workspace;"
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'safetensors')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(vlmc.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_ref_is_a_value(single):
    refs = read_index(single)
    assert refs == read_index(single)
    assert isinstance(refs["bf16"], TensorRef)
    with pytest.raises(AttributeError):
        refs["bf16"].begin = 0


def test_the_system_is_told_once_of_what_comes_next(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(600))
    order = [
        TensorRef(name, path, "F32", (size // 4,), begin, size)
        for name, begin, size in (("a", 0, 100), ("b", 100, 120), ("c", 220, 40), ("d", 260, 300))
    ]
    told = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *what: told.append(what), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    monkeypatch.setattr(checkpoint, "_AHEAD_BYTES", 160)
    monkeypatch.setattr(checkpoint, "_ADVISED_BYTES", 80)
    ahead = checkpoint.ReadAhead(order)
    first = [(at, size, 3) for at, size in ((100, 80), (180, 40), (220, 40))]
    for place in (0, 0, 1, 2, 3):
        ahead.of(place)
    assert told == first  # the last one is more than there is room for
    ahead.of(0)
    assert told == first * 2
