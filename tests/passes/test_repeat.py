"""Layers traced once and copied give the graph that all layers traced give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.checkpoints import MAKERS, fixed, native, pooled, tiles
from vlmc.passes import export as exporting
from vlmc.passes.alike import alike_layers
from vlmc.passes.closed import NotAlikeError
from vlmc.passes.modules import attention
from vlmc.passes.simplify import simplify
from vlmc.passes.step import CausalMask, StepCache, step_cache

DEEP = 5
GRAPHS = ("vision.onnx", "language.onnx")


def exported(folder: Path, out: Path) -> str:
    """Exports a checkpoint; the text of what fills each weight."""
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
    if plan.family.tensors is not None:
        index = plan.family.tensors(index, plan.facts)
    model = transform(folder, plan.family, plan.facts, index, plan.limits.ctx_len)
    out.mkdir()
    exporting.export(model, index, graph_specs(plan), out)
    return (out / exporting.PARAMETERS).read_text(encoding="utf-8")


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


# And how many layers do not run, of decoder and tower together.
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
) -> tuple[int, int, list[tuple[Path, Path]]]:
    """How many layers did not run, how many graphs had all traced, and each graph of both ways."""
    from vlmc.passes import repeat

    made: list[Any] = []
    straight: list[Any] = []
    repeating, graph_of = repeat.repeating, exporting.graph_of

    @contextmanager
    def watched(*given: Any) -> Iterator[Any]:
        with repeating(*given) as repeats:
            made.append(repeats)
            yield repeats

    def counted(*given: Any, repeat: bool) -> Any:
        straight.extend([] if repeat else [given])
        return graph_of(*given, repeat=repeat)

    monkeypatch.setattr(repeat, "repeating", watched)
    monkeypatch.setattr(exporting, "graph_of", counted)
    out.mkdir()
    found = exported(folder, out / "repeated")
    again = len(straight)
    monkeypatch.setattr(
        exporting, "graph_of", lambda *given, repeat: graph_of(*given, repeat=False)
    )
    expected = exported(folder, out / "straight")
    assert found == expected
    pairs = [(out / "repeated" / name, out / "straight" / name) for name in GRAPHS]
    return sum(one.calls for one in made), again, pairs


@pytest.mark.build
@pytest.mark.parametrize("name", CASES)
def test_copied_layers_are_the_traced_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    left_out, make = CASES[name]
    count, again, pairs = both(make(tmp_path / "model"), tmp_path / "out", monkeypatch)
    assert (count, again) == (left_out, 0)
    for found, expected in pairs:
        assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_every_family_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Compared after simplify: of what is not contiguous, a first layer has a copy before."""
    folder = MAKERS[name](tmp_path / "model")
    _, again, pairs = both(folder, tmp_path / "out", monkeypatch)
    assert again == 0
    for number, pair in enumerate(pairs):
        folders = [tmp_path / f"{number}-{way}" for way in ("repeated", "straight")]
        for made, path in zip(folders, pair, strict=True):
            made.mkdir()
            simplify({"graph": path}, made)
        assert_same(*(made / "graph.onnx" for made in folders))


def assert_same(found: Path, expected: Path) -> None:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    models = [ir.load(path) for path in (found, expected)]
    common.RemoveUnusedNodesPass()(models[1])
    known: dict[Any, int] = {}
    numbers = [canonical(model, known) for model in models]
    assert numbers[0] == numbers[1]
    names = [[str(value) for value in model.graph.outputs] for model in models]
    assert names[0] == names[1]


class Block(nn.Module):
    """A layer whose ``does`` makes of its input what it gives."""

    def __init__(self, does: Callable[..., Tensor], number: int) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.does = does
        self.layer_idx = number

    def forward(self, x: Tensor, given: list[Tensor]) -> Tensor:
        return self.does(self, self.inner(x), x, given)


class Stack(nn.Module):
    def __init__(self, does: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(does, number) for number in range(4))

    def forward(self, x: Tensor) -> Tensor:
        given = [x * 2]
        for layer in self.layers:
            x = layer(x, given)
        return x + given[-1]


def traced(does: Callable[..., Tensor]) -> int:
    """How many nodes multiply matrices, of a stack of such layers."""
    stack = Stack(does).requires_grad_(False)
    shapes = ({0: torch.export.Dim("rows")},)
    model = exporting.graph_of(stack, [torch.ones(3, 4)], shapes, repeat=True)
    return sum(node.op_type in ("Gemm", "MatMul") for node in model.graph)


def writes(block: Block, made: Tensor, x: Tensor, given: list[Tensor]) -> Tensor:
    x.add_(1)
    return made


def leaves(block: Block, made: Tensor, x: Tensor, given: list[Tensor]) -> Tensor:
    given.append(made * 2)
    return made


def test_layers_that_take_all_they_read_are_called() -> None:
    assert traced(lambda block, made, x, given: made + x + given[0]) == 4


@pytest.mark.parametrize(
    "does",
    [
        lambda block, made, x, given: made * block.layer_idx,
        lambda block, made, x, given: made if block.layer_idx == 2 else made + 1,
        lambda block, made, x, given: made + (1, 2, 3, 4)[block.layer_idx],
        lambda block, made, x, given: setattr(block, "runs", 1) or made,
        writes,
        leaves,
    ],
    ids=["number", "one layer", "place", "sets itself", "writes", "leaves"],
)
def test_layers_that_depend_on_more_are_not(does: Callable[..., Tensor]) -> None:
    with pytest.raises((NotAlikeError, TypeError)):
        traced(does)


class Attending(Block):
    def forward(self, x: Tensor, mask: CausalMask) -> Tensor:
        made = self.inner(x)[:, None]
        return attention(self, made, made, made, mask)[0].flatten(2)


class Twice(Stack):
    """Its layers attend, and are run as often as is asked."""

    def forward(self, x: Tensor, past: list[Tensor], lengths: Tensor) -> Any:
        names = [(kind, layer) for layer in range(4) for kind in ("key", "value")]
        cache = StepCache(dict(zip(names, past, strict=True)), lengths, lengths)
        with step_cache(cache):
            for layer in list(self.layers) * self.times:
                x = layer(x, CausalMask(None))
        return x, *cache.outputs()


@pytest.mark.parametrize("times", [1, 2])
def test_layers_with_a_cache_run_once(times: int) -> None:
    stack = Twice(lambda: None).requires_grad_(False)
    stack.layers = nn.ModuleList(Attending(lambda: None, number) for number in range(4))
    stack.times = times
    given = [torch.ones(1, 3, 4), [torch.ones(1, 1, 8, 4)] * 8, torch.ones(1, dtype=torch.int64)]
    shapes = ({1: torch.export.Dim("step")}, [{}] * 8, {})
    if times == 2:
        with pytest.raises(NotAlikeError, match="twice"):
            exporting.graph_of(stack, given, shapes, repeat=True)
    else:
        model = exporting.graph_of(stack, given, shapes, repeat=True)
        assert sum(node.op_type == "Attention" for node in model.graph) == 4


def test_layers_of_other_settings_are_of_another_kind() -> None:
    stack = Stack(lambda block, made, x, given: made * block.scale).requires_grad_(False)
    for number, layer in enumerate(stack.layers):
        layer.scale = 1.0 + number // 2
    groups = [(len(layers), layers[0].scale) for layers, _ in alike_layers(stack)]
    assert groups == [(2, 1.0), (2, 2.0)]
