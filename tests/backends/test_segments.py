"""A program run in pieces gives what the whole program gives, and holds only a piece at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.backends.onnxruntime import pieces as cutting
from vlmc.backends.onnxruntime import segments
from vlmc.backends.spec import OpenOptions
from vlmc.backends.together import Together
from vlmc.bundle.manifest import ProgramSpec, TensorSpec
from vlmc.bundle.store import read_bundle
from vlmc.runtime.engine import Engine
from vlmc.runtime.model import Model

MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}],
    }
]


def model(folder: Path, *, pieces: bool) -> Model:
    bundle = read_bundle(folder)
    together = Together() if pieces else None
    return Model(bundle, Engine(bundle, threads=1, pieces=together), reuse=False)


@pytest.mark.parametrize("split", ["dual", "single"])
def test_pieces_answer_as_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    folder = tiny_bundle(tmp_path, split=split)
    monkeypatch.setattr(segments, "PIECE_BYTES", 1)
    picture = Image.new("RGB", (30, 20), (200, 30, 90))
    whole, cut = model(folder, pieces=False), model(folder, pieces=True)
    expected = whole.generate(MESSAGES, images=[picture], max_new_tokens=6, ignore_eos=True)
    found = cut.generate(MESSAGES, images=[picture], max_new_tokens=6, ignore_eos=True)
    assert found.token_ids == expected.token_ids
    prompt = whole.prompt(MESSAGES, images=[picture])
    np.testing.assert_allclose(cut.logits(prompt), whole.logits(prompt), atol=1e-4, rtol=1e-5)


def test_a_cache_is_written_where_it_lies_and_only_where_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "PIECE_BYTES", 1)
    cut = model(tiny_bundle(tmp_path), pieces=True)
    prompt = cut.prompt([{"role": "user", "content": "what?"}])
    length = len(prompt.token_ids)
    caches = cut.engine.cache.inputs(0, 1)
    for cache in caches.values():
        cache[..., length:, :] = 7
    copied = []
    monkeypatch.setattr(np, "copyto", lambda *arrays: copied.append(arrays))
    cut.logits(prompt)
    assert copied == []
    for cache in caches.values():
        assert cache[..., :length, :].any()
        assert (cache[..., length:, :] == 7).all()


def test_memory_that_is_read_later_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state whose new value is made before the last node that reads the old one."""
    monkeypatch.setattr(segments, "PIECE_BYTES", 1)
    weights = {name: np.full(4, value, np.float32) for name, value in (("one", 1), ("two", 2))}
    (tmp_path / "all.bin").write_bytes(b"".join(weight.tobytes() for weight in weights.values()))
    tensors = []
    for at, name in enumerate(weights):
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "all.bin"), ("offset", 16 * at), ("length", 16)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    make = onnx.helper.make_tensor_value_info
    names = ("past_state.0", "present_state.0", "logits")
    values = {name: make(name, onnx.TensorProto.FLOAT, [4]) for name in names}
    nodes = [
        onnx.helper.make_node("Add", ["past_state.0", "one"], ["present_state.0"]),
        onnx.helper.make_node("Mul", ["past_state.0", "two"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes, "g", [values["past_state.0"]], [values[n] for n in names[1:]], tensors
    )
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
        ),
        tmp_path / "p.onnx",
    )
    specs = {name: TensorSpec(name=name, dtype="float32", shape=(4,)) for name in names}
    program = ProgramSpec(
        file="p.onnx",
        weights=("all.bin",),
        inputs=(specs["past_state.0"],),
        outputs=tuple(specs[n] for n in names[1:]),
    )
    session = segments.SegmentedSession(tmp_path, program, OpenOptions(threads=1))
    state = np.array([1, 2, 3, 4], np.float32)
    [found] = session.run_all([({"past_state.0": state}, {"present_state.0": state})])
    assert found["logits"].tolist() == [2, 4, 6, 8]
    assert state.tolist() == [2, 3, 4, 5]


def test_no_piece_holds_more_than_its_share(tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle(tmp_path))
    program = bundle.manifest.programs["language"]
    graph = onnx.load(bundle.folder / program.file, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pieces = cutting.cut(graph, weights, limit=1)
    assert len(pieces) > 1
    assert [node for piece in pieces for node in piece.nodes] == list(graph.node)
    external = {name for name, tensor in weights.items() if tensor.external_data}
    for piece in pieces:
        starts = [n for n in piece.nodes if external & set(cutting.names_read(n))]
        assert len(starts) <= 1


def test_weights_are_turned_in_every_piece_that_reads_them(tmp_path: Path) -> None:
    """In a piece of their own they would be no constants to the product."""
    make = onnx.helper.make_node
    nodes = [
        make("Transpose", ["codes"], ["turned"]),
        make("Cast", ["scales"], ["floats"], to=1),
        make("Mul", ["turned", "floats"], ["matrix"]),
        make("MatMul", ["x", "matrix"], ["y"]),
        make("Add", ["y", "other"], ["z"]),
        make("MatMul", ["z", "matrix"], ["logits"]),
    ]
    names = ("codes", "scales", "other")
    tensors = [onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), n) for n in names]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, 2])
        for n in ("x", "logits")
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    pieces = cutting.cut(graph, {tensor.name: tensor for tensor in tensors}, limit=1)
    made = [[node.output[0] for node in piece.nodes] for piece in pieces]
    assert made == [
        ["turned", "floats", "matrix", "y"],
        ["z"],
        ["turned", "floats", "matrix", "logits"],
    ]
    assert [piece.reads for piece in pieces] == [("x",), ("y",), ("z",)]
    assert [piece.gives for piece in pieces] == [("y",), ("z",), ("logits",)]
    assert [piece.weights for piece in pieces] == [names[:2], ("other",), names[:2]]


@pytest.mark.parametrize(("sizes", "most"), [((1, 1, 1, 1, 1), 3), ((1, 9, 1, 1, 9), 2)])
def test_a_huge_piece_is_open_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], most: int
) -> None:
    bundle = read_bundle(tiny_bundle(tmp_path))
    session = segments.SegmentedSession(
        bundle.folder, bundle.manifest.programs["language"], OpenOptions(threads=1)
    )
    session._pieces = [cutting.Piece((), (), (str(at),), ()) for at in range(len(sizes))]
    monkeypatch.setattr(session, "_is_huge", lambda piece: sizes[int(piece.gives[0])] > 1)
    rooms = [session._room(at) for at in range(len(sizes))]
    assert max(rooms) == most
    for at, room in enumerate(rooms):
        assert room == 1 or max(sizes[at : at + room]) == 1


def test_types_between_pieces_are_known_without_weights(tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle(tmp_path))
    program = bundle.manifest.programs["language"]
    session = segments.SegmentedSession(bundle.folder, program, OpenOptions(threads=1))
    given = {
        spec.name: onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        for spec in program.inputs
    }
    for file in bundle.folder.glob("weights/*"):
        file.unlink()
    types = session._types(given)
    assert types["logits"] == onnx.TensorProto.FLOAT
    assert {name for piece in session._pieces for name in piece.gives} <= types.keys()
