"""Layers of a traced program: the nodes of each, and which compute alike."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx


@dataclass(eq=False)
class Layer:
    """One layer of a list of modules.

    Attributes:
        nodes: All that is called, from its first node to the next layer's first.
        outer: For each value that the layer's ``model`` reads from outside, in order, the one
            that this layer reads in its place.
        model: The first layer that equals this one; None: it stays as it is.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    outer: dict[fx.Node, fx.Node] = field(default_factory=dict)
    model: Layer | None = None


def find_layers(graph: fx.Graph) -> list[Layer]:
    """The layers of every list of modules, in order; none of a list that is run twice."""
    layers: list[tuple[str, Layer]] = []
    seen: set[tuple[str, int]] = set()
    here: tuple[str, int] | None = None
    between: list[fx.Node] = []  # of no layer; it belongs to the one before if its list goes on
    twice: set[str] = set()
    for node in graph.nodes:
        if node.op not in ("call_function", "get_attr") or _is_size_of_input(node):
            continue
        place = _place(node)
        if place is None:
            between.append(node)
        elif place == here:
            layers[-1][1].nodes += [*between, node]
            between = []
        else:
            if here is not None and here[0] == place[0]:
                layers[-1][1].nodes += between
            if place in seen:
                twice.add(place[0])
            seen.add(place)
            layers.append((place[0], Layer([node])))
            here, between = place, []
    return [layer for name, layer in layers if name not in twice]


def _is_size_of_input(node: fx.Node) -> bool:
    """A size, or a product of some, that stands in the first layer needing it; it is of none."""
    import torch

    inputs = node.all_input_nodes
    if node.target is torch.ops.aten.sym_size.int:
        return bool(inputs[0].op == "placeholder")
    arithmetic = node.target in (operator.mul, operator.add, operator.sub, operator.floordiv)
    return arithmetic and bool(inputs) and all(map(_is_size_of_input, inputs))


def _place(node: fx.Node) -> tuple[str, int] | None:
    """The list of modules whose member runs this node, and which: of nested ones the outermost."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        parts = str(path).split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                return ".".join(parts[:at]), int(part)
    return None


def match(model: Layer, layer: Layer) -> dict[fx.Node, fx.Node] | None:
    """What the layer reads for each value the model reads from outside; None: they differ."""
    if len(model.nodes) != len(layer.nodes):
        return None
    inside: dict[fx.Node, fx.Node] = {}
    outer: dict[fx.Node, fx.Node] = {}
    own = set(layer.nodes)

    def same(a: Any, b: Any) -> bool:
        from torch import fx

        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            if a in inside or b in own:
                return inside.get(a) is b
            if a not in outer and (a is b or _same_tensor(a, b)):
                outer[a] = b
            return outer.get(a) is b
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
        return type(a) is type(b) and bool(a == b)

    for one, other in zip(model.nodes, layer.nodes, strict=True):
        called = one.op == other.op and _same_target(one, other)
        if not called or not same(one.args, other.args) or not same(one.kwargs, other.kwargs):
            return None
        inside[one] = other
    return outer


def _same_target(one: fx.Node, other: fx.Node) -> bool:
    if one.op != "get_attr" or one.target == other.target:
        return one.target == other.target
    # Graphs inside the graph, as of a block without gradients: equal text, and no tensors.
    root: Any = one.graph.owning_module
    first, second = (getattr(root, str(node.target)) for node in (one, other))
    text = getattr(first, "code", None)
    return text is not None and text == getattr(second, "code", None) and not first.state_dict()


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor, not a size."""
    import torch

    return isinstance(node.meta.get("val"), torch.Tensor)


def _same_tensor(one: fx.Node, other: fx.Node) -> bool:
    """Whether one may stand for the other: both tensors of one dtype and size."""
    if not (is_tensor(one) and is_tensor(other)):
        return False
    a, b = one.meta["val"], other.meta["val"]
    return a.dtype == b.dtype and list(map(str, a.shape)) == list(map(str, b.shape))
