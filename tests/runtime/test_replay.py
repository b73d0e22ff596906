"""A bundle that the build asks: the forced answer, its own, and each picture encoded once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.backends.onnxruntime import segments
from vlmc.bundle.store import read_bundle
from vlmc.runtime import replay
from vlmc.runtime.engine import Engine
from vlmc.runtime.model import Model

CONTENT = [{"type": "image"}, {"type": "text", "text": "what is this?"}]


def own_answer(bundle: Path, picture: bytes) -> list[int]:
    model = Model(read_bundle(bundle), Engine(read_bundle(bundle)), reuse=False)
    messages = [{"role": "user", "content": CONTENT}]
    options = {"images": [picture], "max_new_tokens": 4, "ignore_eos": True}
    return list(model.generate(messages, **options).token_ids)


# The same tokens; another first one; another last one; none.
@pytest.mark.parametrize("change", [None, 0, 3, "unforced"])
def test_own_tokens_are_the_greedy_ones_whatever_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (30, 20), (200, 30, 90)).save(picture)
    own = own_answer(bundle, picture.read_bytes())
    forced = None if change == "unforced" else list(own)
    if isinstance(change, int):
        forced[change] = (forced[change] + 1) % 50
    question = {
        "name": "q",
        "messages": [{"role": "user", "content": CONTENT}],
        "images": [str(picture)],
        "forced": forced,
        "max_new_tokens": 4,
    }
    (tmp_path / "questions.json").write_text(json.dumps([question]), encoding="utf-8")
    encoded = []
    encode = Engine.encode
    monkeypatch.setattr(
        Engine,
        "encode",
        lambda self, image, *place: encoded.append(image) or encode(self, image, *place),
    )
    replay.replay(bundle, tmp_path / "questions.json", tmp_path)
    with np.load(tmp_path / "q.npz") as found:
        assert found["token_ids"].tolist() == own
        assert found["own_logits"].argmax(-1).tolist() == own
        assert len(found["logits"]) == 4
        same = 4 if not isinstance(change, int) else change + 1
        np.testing.assert_allclose(found["logits"][:same], found["own_logits"][:same], atol=1e-5)
    assert len(encoded) == 1


@pytest.mark.parametrize("split", ["dual", "single"])
@pytest.mark.parametrize("forced", [None, [3, 5]])
def test_piece_by_piece_all_questions_go_through_each_piece_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, forced: list[int] | None
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", split=split, batch=1)
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for at, path in enumerate(pictures):
        Image.new("RGB", (30, 20 + at), (200, 30, 90 * at)).save(path)
    asked = [
        {
            "name": f"q{count}",
            "messages": [{"role": "user", "content": [CONTENT[0]] * count + CONTENT[1:]}],
            "images": [str(path) for path in pictures[:count]],
            "forced": forced,
            "max_new_tokens": 2,
        }
        for count in range(3)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
    ran = []
    run_all = segments.SegmentedSession.run_all
    monkeypatch.setattr(
        segments.SegmentedSession,
        "run_all",
        lambda self, calls: ran.append(len(calls)) or run_all(self, calls),
    )
    folders = [tmp_path / "whole", tmp_path / "pieces"]
    for folder in folders:
        folder.mkdir()
        replay.replay(bundle, tmp_path / "questions.json", folder)
        monkeypatch.setattr(replay, "WHOLE_BYTES", 0)
        monkeypatch.setattr(segments, "PIECE_BYTES", 1)
    for question in asked:
        whole, cut = (dict(np.load(folder / f"{question['name']}.npz")) for folder in folders)
        assert whole.keys() == cut.keys()
        for name, values in whole.items():
            np.testing.assert_allclose(cut[name], values, atol=2e-3, err_msg=name)
    # All pictures at once; then at most as many steps as the longest prompt has, and its answer.
    assert ran[:2] == [3, 3]
    assert sum(count == 3 for count in ran) >= 3
