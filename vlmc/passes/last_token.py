"""What only a step's last token is needed for, computed for that token alone.

Logits are read after the last token of a step. So are, in a decoder's last layer, all products
behind its attention: their other tokens reach nothing. In a prefill of many tokens that is most of
one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

# Nodes that compute each token by itself, whichever the others are.
_BY_TOKEN = {("vlmc", "Linear"), ("vlmc", "SkipRMSNorm"), ("", "RMSNormalization")} | {
    ("", op)
    for op in (
        *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Reciprocal", "Cast", "Identity"),
        *("LayerNormalization", "Sigmoid", "Tanh", "Erf", "Gelu", "Relu", "Swish", "Split"),
    )
}
_LAST = "last_token"


def keep_last_token(graph: ir.Graph) -> int:
    """Moves the choice of a step's last token as far up as it goes; gives the nodes it passed.

    Args:
        graph: A simplified neutral graph, changed in place; one without such a choice stays as
            it is. The choice is ``Gather`` of index -1 on axis 1 of [B, S, H], S a free
            dimension.
    """
    passed = 0
    for choice in [node for node in graph if _is_choice(node)]:
        hidden = choice.inputs[0]
        assert hidden is not None
        steps = _step(hidden)
        inside = _reads_last_only(graph, choice, steps)
        if any(node.op_type == "Linear" for node in inside):
            _narrow(graph, inside, steps)
            passed += len(inside)
    return passed


def _is_choice(node: ir.Node) -> bool:
    if node.op_type != "Gather" or node.domain or _step(node.inputs[0]) is None:
        return False
    axis, index = node.attributes.get("axis"), node.inputs[1]
    chosen = index.const_value.numpy() if index is not None and index.const_value else None
    return (
        axis is not None
        and axis.value == 1
        and chosen is not None
        and chosen.shape == ()
        and chosen == -1
    )


def _step(value: ir.Value | None) -> str | None:
    """The name of the free dimension S of a value [B, S, H]; None for another one."""
    if value is None or value.shape is None or len(value.shape) != 3:
        return None
    size = value.shape[1]
    return None if isinstance(size, int) else size.value


def _reads_last_only(graph: ir.Graph, choice: ir.Node, steps: str | None) -> list[ir.Node]:
    """The nodes that nothing but the chosen token is read of, last first."""
    inside = {choice: None}
    for node in reversed(list(graph)):
        used = [use.node for value in node.outputs for use in value.uses()]
        if used and all(reader in inside for reader in used) and _is_by_token(node, steps):
            inside[node] = None
    return [node for node in inside if node is not choice]


def _is_by_token(node: ir.Node, steps: str | None) -> bool:
    if (node.domain, node.op_type) not in _BY_TOKEN:
        return False
    axis = node.attributes.get("axis")
    if (axis.value if axis is not None else 0 if node.op_type == "Split" else -1) not in (-1, 2):
        return False
    if any(_step(value) != steps or value.is_graph_output() for value in node.outputs):
        return False
    # A weight or a number is the same for all tokens; anything else must have them on axis 1.
    return all(
        value is None or _step(value) == steps or _is_constant(value) for value in node.inputs
    )


def _is_constant(value: ir.Value) -> bool:
    shape = value.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return False
    return value.is_graph_input() or len(shape) < 2 or list(shape[:-1]) == [1] * (len(shape) - 1)


def _narrow(graph: ir.Graph, inside: list[ir.Node], steps: str | None) -> None:
    """Has the nodes read [B, 1, H] where what they read is made by others."""
    import onnx_ir as ir

    tensor = ir.tensor(np.array([-1], np.int64), name=_LAST)
    index = ir.Value(
        name=_LAST, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
    )
    graph.initializers[_LAST] = index
    chosen: dict[ir.Value, ir.Value] = {}
    for node in reversed(inside):
        for at, value in enumerate(node.inputs):
            if value is None or _step(value) != steps or value.producer() in inside:
                continue
            if value not in chosen:
                name = f"{value.name}_{_LAST}"
                gather = ir.Node("", "Gather", [value, index], [ir.AttrInt64("axis", 1)], name=name)
                gather.outputs[0].name = name
                assert value.shape is not None
                gather.outputs[0].type = value.type
                gather.outputs[0].shape = ir.Shape([value.shape[0], 1, value.shape[2]])
                graph.insert_before(node, gather)
                chosen[value] = gather.outputs[0]
            node.replace_input_with(at, chosen[value])
    for node in inside:
        for value in node.outputs:
            assert value.shape is not None
            value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
