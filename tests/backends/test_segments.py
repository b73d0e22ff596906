"""A program run in pieces gives what the whole program gives, and holds only a piece at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.backends.onnxruntime import segments
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
    return Model(bundle, Engine(bundle, threads=1, pieces=pieces), reuse=False)


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


def test_no_piece_holds_more_than_its_share(tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle(tmp_path))
    program = bundle.manifest.programs["language"]
    graph = onnx.load(bundle.folder / program.file, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pieces = segments._cut(graph, weights, limit=1)
    assert len(pieces) > 1
    assert [node for piece in pieces for node in piece.nodes] == list(graph.node)
    external = {name for name, tensor in weights.items() if tensor.external_data}
    for piece in pieces:
        starts = [n for n in piece.nodes if external & set(segments._names_read(n))]
        assert len(starts) <= 1
