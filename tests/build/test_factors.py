"""Folding changes no program's answer, and finds all that a model's layers offer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vlmc.backends import BACKENDS
from vlmc.passes.channels import find_folds
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.compile import compile_programs
from vlmc.passes.export import PARAMETERS
from vlmc.passes.quantize import Formats, quantize
from vlmc.passes.scaling import write_folds

pytestmark = pytest.mark.build
# How many linear layers of each graph no fold reaches: a tower's second layers behind a
# function of each channel, its projector, the head.
LEFT = {
    "llava-clip-llama": {"vision": 4, "language": 1},
    "gemma2": {"vision": 4, "language": 1},
}
SIZES = {"batch": 1, "step": 6, "features": 1, "ctx": 16}


def files(workshop, made, name: str) -> Path:
    key = next(record.key for record in made.passes if record.name == name)
    return workshop.cache / "entries" / key / "files"


def answers(folder: Path, graphs: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """Every program run once, by onnxruntime itself, on the same random inputs."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    found = {}
    for name in graphs:
        data = (folder / "programs" / f"{name}.onnx").read_bytes()
        session = ort.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
        random = np.random.default_rng(0)
        feeds = {}
        for given in session.get_inputs():
            shape = [SIZES.get(size, size) for size in given.shape]
            if given.type == "tensor(float)":
                feeds[given.name] = random.standard_normal(shape).astype(np.float32)
            else:
                kind = np.int32 if given.type == "tensor(int32)" else np.int64
                feeds[given.name] = np.zeros(shape, kind)
        if "input_ids" in feeds:
            feeds["input_ids"] += np.arange(SIZES["step"])
            feeds["position_ids"] += np.arange(SIZES["step"])
            feeds["feature_index"] -= 1
            feeds["sequence_lengths"] += SIZES["step"]
            feeds["total_length"] += SIZES["step"]
        names = [value.name for value in session.get_outputs()]
        found[name] = dict(zip(names, session.run(names, feeds), strict=True))
    return found


@pytest.mark.parametrize("name", LEFT)
def test_any_factors_leave_every_answer_as_it_is(workshop, tmp_path, name):
    made = workshop.build(name, until="simplify")
    simplified, exported = (files(workshop, made, step) for step in ("simplify", "export"))
    graphs = {graph: simplified / f"{graph}.onnx" for graph in LEFT[name]}
    parameters = json.loads((exported / PARAMETERS).read_text(encoding="utf-8"))
    index = read_index(workshop.checkpoint(name))
    kept = {parameters["embedding"], parameters["head"]}
    random = np.random.default_rng(1)
    folds = []
    for graph, path in graphs.items():
        loaded = ir.load(path).graph
        there = find_folds(loaded, kept)
        folds += [(fold, random.integers(-5, 6, fold.channels)) for fold in there]
        layers = sum(node.op_type == "Linear" for node in loaded)
        assert layers - sum(len(fold.consumers) for fold in there) == LEFT[name][graph]
    write_folds(tmp_path / "folds.json", folds, {})
    formats = Formats("fp32", "fp32", "fp32", "fp32", 32)
    results = []
    for given in (None, tmp_path / "folds.json"):
        folder = tmp_path / str(given is not None)
        folder.mkdir()
        quantize(graphs, exported, index, formats, folder, folds=given)
        compile_programs(graphs, folder, BACKENDS["onnxruntime"], "dual", folder)
        results.append(answers(folder, graphs))
    plain, folded = results
    # What Gemma's norms add to their weight is rounded with it; all else is exact.
    allowed = 1e-5 if name == "gemma2" else 0.0
    for graph, key in (("vision", "image_features"), ("language", "logits")):
        expected = plain[graph][key]
        np.testing.assert_allclose(
            folded[graph][key], expected, rtol=0, atol=allowed * np.abs(expected).max()
        )
    values = [key for key in plain["language"] if key.startswith("present_value")]
    assert any((plain["language"][key] != folded["language"][key]).any() for key in values)
