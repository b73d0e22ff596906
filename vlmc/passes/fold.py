"""Layers that are alike, folded in a traced program: one stays, the others become one call each.

What is done to a traced program until it is ONNX takes longer with every layer. So every layer is
traced, which runs the model's own code with every index and window it has; then each is compared,
node by node, with those before it. What is equal but for the tensors that come in (weights, caches,
the layer before) is left out, and written again by ``unfold`` afterwards.
Nothing is assumed of a model: a layer that differs in anything stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmc.passes.alike import Layer, find_layers, is_tensor, match

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

# The nodes around a layer that stays, and in the place of one that does not. Their attribute
# ``kind`` says which of the layers that stay is meant.
DOMAIN = "vlmc"
ENTER, LEAVE, CALL = "Enter", "Leave", "Call"
# Layers of fewer nodes are translated before they are folded.
_FEW = 8


@dataclass(eq=False)
class _Kind:
    """Layers that are equal: how the one that stays is entered and left.

    Attributes:
        number: Its number in the program.
        inputs: Tensors that the layer which stays reads from outside.
        live: Places of the nodes that something outside of a layer reads.
        shapes: Sizes of those nodes' tensors, as arguments of a node.
    """

    number: int
    inputs: list[fx.Node]
    live: list[int]
    shapes: list[list[Any]] = field(default_factory=list)


def fold(program: ExportedProgram) -> int:
    """Folds a program in place.

    Returns:
        How many layers were left out; with 0, the program is what it was.
    """
    graph = program.graph
    layers = find_layers(graph)
    kinds = _kinds(layers)
    replaced: dict[fx.Node, fx.Node] = {}
    for layer in layers:
        if layer.model is None or layer.model not in kinds:
            continue
        kind = kinds[layer.model]
        if layer.model is layer:
            _enclose(graph, layer, kind, replaced)
        else:
            _call(graph, layer, kind, replaced)
    if kinds:
        outputs = next(iter(reversed(graph.nodes))).args[0]
        for spec, node in zip(program.graph_signature.output_specs, outputs, strict=True):
            spec.arg.name = node.name
        graph.lint()
        program.graph_module.recompile()
    return sum(layer.model in kinds and layer.model is not layer for layer in layers)


def _kinds(layers: Sequence[Layer]) -> dict[Layer, _Kind]:
    """Gives every layer its model; a kind for each model that others equal."""
    models: list[Layer] = []
    for layer in layers:
        for model in models:
            outer = match(model, layer)
            if outer is not None:
                layer.model, layer.outer = model, outer
                break
        else:
            models.append(layer)
            layer.model = layer
    kinds: dict[Layer, _Kind] = {}
    for model in models:
        equal = [layer for layer in layers if layer.model is model]
        live = sorted(set().union(*map(_live, equal)))
        inputs = [node for node in equal[-1].outer if is_tensor(node)]
        tensors = all(is_tensor(layer.nodes[at]) for layer in equal for at in live)
        worth = len(equal) > 1 and len(model.nodes) >= _FEW and live and inputs
        if worth and tensors and not _mutates(model.nodes):
            kinds[model] = _Kind(len(kinds), inputs, live)
    return kinds


def _live(layer: Layer) -> set[int]:
    own = set(layer.nodes)
    return {at for at, node in enumerate(layer.nodes) if not own.issuperset(node.users)}


def _mutates(nodes: Sequence[fx.Node]) -> bool:
    """Whether something is written in place that the layer did not make for itself alone."""
    own = set(nodes)
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        written = [
            value
            for value, argument in zip(node.args, schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not written or not all(_is_own(value, own) for value in written):
            return True
    return False


def _is_own(value: Any, own: set[fx.Node]) -> bool:
    """Whether a value is a tensor of the layer's that is no view, and that none outside reads."""
    if value not in own or not own.issuperset(value.users):
        return False
    if value.target is operator.getitem:
        return _is_own(value.args[0], own)
    schema = getattr(value.target, "_schema", None)
    return schema is not None and all(out.alias_info is None for out in schema.returns)


def _enclose(graph: fx.Graph, layer: Layer, kind: _Kind, replaced: dict[fx.Node, fx.Node]) -> None:
    """Puts an Enter before the layer that stays and a Leave behind it."""
    given = [_latest(node, replaced) for node in kind.inputs]
    with graph.inserting_before(layer.nodes[0]):
        entered = _node(graph, ENTER, kind.number, given, [_sizes(graph, v) for v in given], given)
    inside = dict(zip(given, entered, strict=True))
    for node in layer.nodes:
        for old, new in inside.items():
            node.replace_input_with(old, new)
    values = [layer.nodes[at] for at in kind.live]
    own = set(layer.nodes)
    users = [[user for user in value.users if user not in own] for value in values]
    with graph.inserting_before(layer.nodes[-1].next):
        sizes = [_sizes(graph, value) for value in values]
        left = _node(graph, LEAVE, kind.number, values, sizes, values)
        kind.shapes = [_sizes(graph, value) for value in left]
    for value, outside, new in zip(values, users, left, strict=True):
        replaced[value] = new
        for user in outside:
            user.replace_input_with(value, new)


def _call(graph: fx.Graph, layer: Layer, kind: _Kind, replaced: dict[fx.Node, fx.Node]) -> None:
    """Puts a Call in the place of a layer."""
    given = [_latest(layer.outer[node], replaced) for node in kind.inputs]
    values = [layer.nodes[at] for at in kind.live]
    with graph.inserting_before(layer.nodes[0]):
        made = _node(graph, CALL, kind.number, given, kind.shapes, values)
    for value, new in zip(values, made, strict=True):
        replaced[value] = new
        value.replace_all_uses_with(new)
    for node in reversed(layer.nodes):
        graph.erase_node(node)


def _latest(node: fx.Node, replaced: Mapping[fx.Node, fx.Node]) -> fx.Node:
    return replaced.get(node, node)


def _sizes(graph: fx.Graph, node: fx.Node) -> list[Any]:
    """The sizes of a node's tensor; those that are free, as nodes."""
    import torch

    sizes: list[Any] = []
    for axis, size in enumerate(node.meta["val"].shape):
        if isinstance(size, torch.SymInt):
            cut = graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
            cut.meta["val"] = size
            size = cut
        sizes.append(size)
    return sizes


def _node(
    graph: fx.Graph,
    op: str,
    kind: int,
    inputs: Sequence[fx.Node],
    shapes: Sequence[Sequence[Any]],
    like: Sequence[fx.Node],
) -> list[fx.Node]:
    """A node of our domain, as ``torch.onnx.ops.symbolic_multi_out`` makes them; its outputs."""
    import torch
    from onnx_ir.tensor_adapters import from_torch_dtype

    node = graph.call_function(
        torch.ops.onnx_symbolic._symbolic_multi_out.default,
        (list(inputs), op, [int(from_torch_dtype(one.meta["val"].dtype)) for one in like]),
        {
            "shapes": [list(shape) for shape in shapes],
            "attr_keys": ["kind"],
            "attr_types": ["i"],
            "attr_pos": [[0, 1]],
            "attr_ints": [kind],
            "attr_floats": [],
            "attr_strs": [],
            "metadata_props_keys": [],
            "metadata_props_values": [],
            "domain": DOMAIN,
            "version": 1,
        },
    )
    node.meta["val"] = [one.meta["val"] for one in like]
    outputs = []
    for at, one in enumerate(like):
        output = graph.call_function(operator.getitem, (node, at))
        output.meta["val"] = one.meta["val"]
        outputs.append(output)
    return outputs
