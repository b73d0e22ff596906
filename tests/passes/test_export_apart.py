"""A graph exported by another process: the bytes of this one's, and its errors left to this one."""

import json
from dataclasses import replace

import pytest

from tests.checkpoints.native import qwen2_vl
from vlmc.passes import export_apart
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.export import PARAMETERS, export
from vlmc.passes.export_apart import Told, exported_apart
from vlmc.passes.transform import transform
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.scope import graph_specs
from vlmc.sources import read_checkpoint

GRAPHS = ("vision.onnx", "language.onnx", PARAMETERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small model: its folder, plan, index, transformed module and what is told of it."""
    folder = qwen2_vl(tmp_path_factory.mktemp("apart") / "model")
    recipe = Recipe.model_validate({"model": str(folder), "name": "apart", "ctx-len": 64})
    plan = resolve(recipe, read_checkpoint(folder), recipe_at="r", model_at="m")
    index = read_index(folder)
    told = Told(folder, plan.family, plan.facts, index, 64, graph_specs(plan)[0])
    model = transform(folder, plan.family, plan.facts, index, 64)
    return plan, index, told, model


def exported(made, out, apart=None):
    plan, index, _, model = made
    out.mkdir()
    export(model, index, graph_specs(plan), out, apart)
    return [(out / name).read_bytes() for name in GRAPHS]


def test_its_bytes_are_those_of_one_process(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export_apart, "_LARGE_BYTES", 0)
    monkeypatch.setattr(export_apart, "processors", lambda: 2)
    asked = []
    with exported_apart(made[2]) as apart:

        def elsewhere(out):
            asked.append(apart["vision"](out))
            return asked[-1]

        found = exported(made, tmp_path / "apart", {"vision": elsewhere})
    assert asked == [json.loads(found[2])["programs"]["vision"]]
    assert found == exported(made, tmp_path / "here")


def test_what_fails_there_is_left_to_this_process(made, tmp_path, monkeypatch):
    monkeypatch.setattr(export_apart, "_LARGE_BYTES", 0)
    monkeypatch.setattr(export_apart, "processors", lambda: 2)
    with exported_apart(replace(made[2], folder=tmp_path / "absent")) as apart:
        assert apart["vision"](tmp_path) is None
    found = exported(made, tmp_path / "out", {"vision": lambda out: None})
    assert all(found)


def test_a_small_model_and_one_core_are_left_alone(made, monkeypatch):
    with exported_apart(made[2]) as apart:
        assert not apart
    monkeypatch.setattr(export_apart, "_LARGE_BYTES", 0)
    monkeypatch.setattr(export_apart, "processors", lambda: 1)
    with exported_apart(made[2]) as apart:
        assert not apart
