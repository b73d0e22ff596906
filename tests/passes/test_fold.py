"""Layers written once and copied give the graph that all layers translated give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import fixed, native, pooled, tiles
from vlmc.passes import export as exporting

DEEP = 5


def graphs(folder: Path, out: Path) -> dict[str, Any]:
    """The exported graphs of a checkpoint."""
    import onnx_ir as ir

    from vlmc.passes.transform import transform
    from vlmc.plan import resolve
    from vlmc.recipe import load_recipe
    from vlmc.scope import graph_specs
    from vlmc.sources import check_weights, read_checkpoint

    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(f"model: ./{folder.name}\nctx-len: 320\n", encoding="utf-8")
    plan = resolve(
        load_recipe(recipe, ()), read_checkpoint(folder), recipe_at="recipe", model_at="model"
    )
    index = check_weights(folder)
    model = transform(folder, plan.family, plan.facts, index, plan.limits.ctx_len)
    out.mkdir()
    exporting.export(model, index, graph_specs(plan), out)
    parameters = (out / exporting.PARAMETERS).read_text(encoding="utf-8")
    return {
        "parameters": parameters,
        **{name: ir.load(out / f"{name}.onnx") for name in ("vision", "language")},
    }


def canonical(model: Any, known: dict[Any, int]) -> tuple[list[int], set[int]]:
    """What a graph's outputs are, and its nodes, whatever they are called and wherever they stand.

    Every value is known by what it is: an input by its name, a constant by its content, an output
    of a node by the node's operator, attributes, inputs, its place and its type. The same is the
    same number in every graph that shares ``known``.
    """

    def number(*what: Any) -> int:
        return known.setdefault(what, len(known))

    values: dict[Any, int] = {None: number("none")}
    for value in model.graph.inputs:
        values[value] = number("input", value.name, str(value.type), str(value.shape))
    for value in model.graph.initializers.values():
        content = value.const_value.tobytes()
        values[value] = number("constant", str(value.type), str(value.shape), content)
    nodes = set()
    for node in model.graph:
        if node.op_type == "Constant":
            (attribute,) = node.attributes.values()
            tensor = attribute.value
            content = tensor.tobytes() if hasattr(tensor, "tobytes") else repr(tensor)
            values[node.outputs[0]] = number("constant", attribute.name, str(tensor), content)
            continue
        attributes = tuple(sorted((k, repr(a.value)) for k, a in node.attributes.items()))
        inputs = tuple(values[value] for value in node.inputs)
        this = number(node.domain, node.op_type, node.overload, attributes, inputs)
        nodes.add(this)
        for at, value in enumerate(node.outputs):
            values[value] = number("output", this, at, str(value.type), str(value.shape))
    return [values[value] for value in model.graph.outputs], nodes


def llava(text: str, **values: Any) -> Callable[[Path], Path]:
    return lambda folder: fixed.llava(folder, text=text, num_hidden_layers=DEEP, **values)


# And how many layers are left out, of decoder and tower together.
CASES: dict[str, tuple[int, Callable[[Path], Path]]] = {
    # The first two layers of the decoder have no window, the others have.
    "two-windows": (
        DEEP - 2 + 2,
        llava("qwen2", use_sliding_window=True, sliding_window=24, max_window_layers=2),
    ),
    # Features are taken from three of the tower's layers.
    "vipllava": (
        DEEP - 1 + 2,
        lambda folder: fixed.vipllava(folder, num_hidden_layers=DEEP),
    ),
    "internvl": (
        2 * (DEEP - 1),
        lambda folder: tiles.internvl(
            folder, num_hidden_layers=DEEP, tower={"num_hidden_layers": DEEP}
        ),
    ),
    "qwen2-vl": (
        DEEP - 1 + 1,
        lambda folder: native.qwen2_vl(folder, num_hidden_layers=DEEP),
    ),
    # Layers with experts that write in place; the last sees all, the others a window.
    "gemma4": (
        1 + 1,
        lambda folder: pooled.gemma4(
            folder,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            num_kv_shared_layers=0,
            enable_moe_block=True,
            num_experts=3,
            top_k_experts=2,
            moe_intermediate_size=16,
        ),
    ),
    # One of the tower's three layers sees all patches, the others windows.
    "qwen2.5-vl": (1 + 1, native.qwen2_5_vl),
}


def both(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[tuple[Any, Any]]]:
    """How many layers were left out, and each graph with and without folding."""
    counts: list[int] = []
    fold = exporting.fold
    monkeypatch.setattr(
        exporting, "fold", lambda program: counts.append(fold(program)) or counts[-1]
    )
    out.mkdir()
    found = graphs(folder, out / "folded")
    monkeypatch.setattr(exporting, "fold", lambda program: 0)
    expected = graphs(folder, out / "straight")
    assert found["parameters"] == expected["parameters"]
    return sum(counts), [(found[name], expected[name]) for name in ("vision", "language")]


# Each exports a model twice: one of them is enough at every commit.
EACH = [pytest.param(name, marks=[] if name == "vipllava" else pytest.mark.build) for name in CASES]


@pytest.mark.parametrize("name", EACH)
def test_copied_layers_are_the_translated_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    left_out, make = CASES[name]
    count, pairs = both(make(tmp_path / "model"), tmp_path / "out", monkeypatch)
    assert count == left_out
    for found, expected in pairs:
        assert_same(found, expected)


def assert_same(found: Any, expected: Any) -> None:
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(expected)
    known: dict[Any, int] = {}
    assert canonical(found, known) == canonical(expected, known)
    names = [[str(value) for value in graph.outputs] for graph in (found.graph, expected.graph)]
    assert names[0] == names[1]
