"""Both files of weights are made at once: told as one, and none goes on where the other fails."""

from __future__ import annotations

import json
import time
from pathlib import Path

import onnx_ir as ir
import pytest

from vlmc.errors import VlmcError
from vlmc.passes import quantize as quantizing
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.export import PARAMETERS

FORMATS = quantizing.Formats("fp32", "fp32", "fp32", "fp32", 32)


@pytest.fixture
def given(tmp_path: Path):
    """The arguments of ``quantize`` for two graphs of one product each, but for ``out``."""
    graphs, index = {}, {}
    for name in ("vision", "language"):
        x, weight = (
            ir.Value(name=n, shape=ir.Shape([4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
            for n in ("x", name)
        )
        node = ir.Node("vlmc", "Linear", [x, weight])
        node.outputs[0].name, node.outputs[0].type = "y", x.type
        graph = ir.Graph(
            [x, weight], node.outputs, nodes=[node], opset_imports={"": 23, "vlmc": 1}, name=name
        )
        graphs[name] = tmp_path / f"{name}.onnx"
        ir.save(ir.Model(graph, ir_version=11), graphs[name])
        index[name] = TensorRef(name, tmp_path / "model.safetensors", "F32", (4, 4), 0, 64)
    described = {
        "embedding": "language",
        "head": "language",
        "sources": {name: name for name in graphs},
        "programs": {name: [name] for name in graphs},
    }
    (tmp_path / PARAMETERS).write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(64)))
    return graphs, tmp_path, index, FORMATS


def test_what_is_done_of_both_is_told_as_one(given, tmp_path):
    told = []
    out = tmp_path / "out"
    out.mkdir()
    files = quantizing.quantize(*given, out, lambda *bytes_: told.append(bytes_))
    assert told[-1] == (128, 128)
    assert sorted(told) == told
    assert files.keys() == {"weights/vision.bin", "weights/language.bin"}
    assert all((out / file).read_bytes()[:64] == bytes(range(64)) for file in files)


@pytest.mark.parametrize("failing", ["vision", "language"])
def test_one_that_fails_stops_the_other(given, tmp_path, monkeypatch, failing):
    steps = []

    def write(jobs, index, place, *, progress, once):
        progress(0, 1)
        if place.stem == failing:
            raise VlmcError("the disk is full")
        for step in range(1000):
            progress(step, 1000)
            steps.append(step)
            time.sleep(0.01)

    monkeypatch.setattr(quantizing, "write_weights", write)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(VlmcError, match="the disk is full"):
        quantizing.quantize(*given, out)
    assert len(steps) < 1000
