"""int8 on weights with outlier channels: calibrated, it loses little more than without them."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.build.outliers import DEMO, logit_errors, per_channel, per_tensor, with_outliers
from vlmc import asking, compiler
from vlmc.backends.onnxruntime.settings import session_options
from vlmc.compiler import build
from vlmc.demo.world import render, scene
from vlmc.passes import calibrate
from vlmc.passes.abreast import UnwantedError
from vlmc.recipe import load_recipe
from vlmc.sources import digests

pytestmark = pytest.mark.build
HEADER = "ctx-len: 320\nprecision: {language: int8, vision: int8}\nchecks: {reference: 'off'}\n"


def test_the_baseline_is_onnxruntimes_own_operator():
    random = np.random.default_rng(0)
    x = random.standard_normal((40, 64)).astype(np.float32)
    x[:, 3] *= 30
    weight = random.standard_normal((24, 64)).astype(np.float32)
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    codes = np.rint(weight / scale[:, None]).astype(np.int8).T
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["x", "b", "scale"], ["y"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 24])],
        [
            helper.make_tensor("b", TensorProto.INT8, codes.shape, codes.tobytes(), raw=True),
            helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.tobytes(), raw=True),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {"x": x})
    ours = per_tensor(x) @ per_channel(weight).T
    np.testing.assert_allclose(found, ours, atol=1e-4 * np.abs(ours).max())


@pytest.fixture(scope="module")
def outliers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outliers")
    with_outliers(DEMO, folder / "model")
    picture = render(scene(7, split="train"))
    picture.save(folder / "picture.png")
    lines = [
        [{"role": "user", "content": [{"type": "image", "image": "picture.png"}, text]}]
        for text in ({"type": "text", "text": q} for q in ("What shapes do you see?", "Read it."))
    ]
    lines.append([{"role": "user", "content": "Which colours are there?"}])
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")

    def make(calibration):
        path = folder / "recipe.yaml"
        path.write_text(f"model: ./model\n{HEADER}quantize: {{calibration: {calibration}}}\n")
        out, cache = folder / "artifacts" / calibration, folder / "cache"
        return build(load_recipe(path), at=str(path), out=out, cache=cache)

    return folder, {name: make(name) for name in ("off", "questions.jsonl")}


def test_logits_lose_a_third_of_what_one_scale_a_matrix_loses_or_less(outliers):
    folder, made = outliers
    bundles = {name: one.bundle for name, one in made.items()}
    errors = logit_errors(
        folder / "model", {"matrix": None, **bundles}, range(3_000_000, 3_000_004)
    )
    assert errors["off"] < errors["matrix"]
    assert errors["questions.jsonl"] < min(errors["off"], errors["matrix"]) / 3, errors


def test_the_report_says_what_was_found(outliers):
    _, made = outliers
    facts = {}
    for name, one in made.items():
        report = json.loads((one.bundle / "report/build.json").read_text(encoding="utf-8"))
        facts[name] = report.get("calibration")
    assert facts["off"] is None
    calibration = facts["questions.jsonl"]
    # Four folds in each of four layers, three in each of the three that are read of the tower.
    assert calibration["folds"] == 25
    assert calibration["folds-used"] == 25
    assert 3 * 25 <= calibration["channels-scaled"] < calibration["channels"] / 4
    assert 32 <= calibration["largest-factor"] <= 256
    assert calibration["layer-error-after"] < calibration["layer-error-before"] / 5


def test_the_bundle_names_the_file_not_its_folder(outliers):
    folder, made = outliers
    manifest = (made["questions.jsonl"].bundle / "manifest.json").read_text(encoding="utf-8")
    assert json.loads(manifest)["recipe"]["quantize"]["calibration"] == "questions.jsonl"
    assert str(folder) not in manifest


@pytest.fixture
def slowly_hashed(monkeypatch):
    """Shards whose digests take longer than the graphs, where ``early`` until the model is asked.

    ``ends`` has what became of asking it: a number of answers, or that it was ended.
    """
    told = SimpleNamespace(early=True, ends=[])
    begun = threading.Event()

    @contextmanager
    def hashing(source, names, *, cache):
        def made():
            if told.early:
                assert begun.wait(120), "nobody asked the model while its shards were hashed"
            else:
                assert not begun.wait(5), "the model was asked for what may be known"
            return digests(source, names, cache=cache)

        begun.clear()
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(made)

    def observe(*given):
        begun.set()
        try:
            found = calibrate.observe(*given)
        except UnwantedError:
            told.ends.append("ended")
            raise
        told.ends.append(len(found.answers))
        return found

    monkeypatch.setattr(compiler, "hashing_apart", hashing)
    monkeypatch.setattr(asking, "observe", observe)
    return told


def test_the_model_is_asked_while_its_shards_are_hashed(outliers, slowly_hashed, tmp_path):
    folder, made = outliers
    path = folder / "recipe.yaml"
    path.write_text(f"model: ./model\n{HEADER}quantize: {{calibration: questions.jsonl}}\n")
    entries = tmp_path / "cache" / "entries"

    def again(*forgotten):
        for name in forgotten:
            shutil.rmtree(entries / keys[name])
        found = build(
            load_recipe(path), at=str(path), out=tmp_path / "out", cache=tmp_path / "cache"
        )
        assert found.version == made["questions.jsonl"].version
        return found

    keys = {record.name: record.key for record in again().passes}
    # The graphs are known, and so may be all else.
    slowly_hashed.early = False
    assert all(record.hit for record in again().passes)
    # They are made again, and what is made from them turns out to be known.
    slowly_hashed.early = True
    found = again("simplify")
    assert [record.name for record in found.passes if not record.hit] == ["simplify"]
    again("simplify", "calibrate")
    assert slowly_hashed.ends == [0, "ended", 0]


@pytest.mark.parametrize(
    ("precision", "reference", "calibration", "told"),
    [
        ("int8", "off", "auto", True),
        ("int8", "off", "off", False),
        ("int8", "auto", "auto", False),
        ("fp32", "off", "auto", False),
    ],
)
def test_a_build_that_only_the_check_keeps_from_calibrating_says_so(
    tmp_path, precision, reference, calibration, told
):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {DEMO}\nctx-len: 320\nprecision: {precision}\n"
        f"checks: {{reference: '{reference}'}}\nquantize: {{calibration: '{calibration}'}}\n"
    )
    events = []
    build(
        load_recipe(path),
        at=str(path),
        out=tmp_path / "artifacts",
        cache=tmp_path / "cache",
        until="load",
        progress=events.append,
    )
    notices = [event.message for event in events if event.kind == "notice"]
    assert [message for message in notices if "not calibrated" in message] == notices
    assert bool(notices) == told
