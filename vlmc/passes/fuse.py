"""Patterns every decoder has, found in the simplified graph and made one neutral node each.

A pattern is replaced only where it is matched whole; what is written differently stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "vlmc"
# Elementwise steps between a rotary table and the product that reads it.
_TABLE_STEPS = frozenset({"Unsqueeze", "Cos", "Sin", "Cast", "Mul"})


def fuse(graph: ir.Graph) -> dict[str, int]:
    """Rewrites a graph in place; gives how often each pattern was found."""
    counts: dict[str, int] = {}
    rules: tuple[Callable[[ir.Graph, ir.Node], bool], ...] = (
        _attention_reshape,
        _packed_rotary,
        _rotary,
        _skip_rms_norm,
    )
    for rule in rules:
        counts[rule.__name__.removeprefix("_")] = sum(rule(graph, node) for node in list(graph))
        _remove_unused(graph)
    return counts


def _attention_reshape(graph: ir.Graph, node: ir.Node) -> bool:
    """Reshape of an attention's output to its own shape, left by splitting and joining heads."""
    import onnx_ir.convenience as convenience

    source = _producer(node.inputs[0], "Attention", DOMAIN) if node.op_type == "Reshape" else None
    shape = node.outputs[0].shape
    if source is None or shape is None or node.outputs[0].is_graph_output():
        return False
    before = source.outputs[0].shape
    if before is None or len(shape) != len(before) or shape[-1] != before[-1]:
        return False
    convenience.replace_all_uses_with(node.outputs[0], source.outputs[0])
    return True


def _skip_rms_norm(graph: ir.Graph, node: ir.Node) -> bool:
    """A sum that is normalized: both come out of one node."""
    if node.op_type != "RMSNormalization":
        return False
    total = _producer(node.inputs[0], "Add")
    if total is None or any(v is None or v.shape is None for v in total.inputs):
        return False
    first, second = total.inputs
    assert first is not None
    assert second is not None
    assert first.shape is not None
    assert second.shape is not None
    if len(first.shape) != 3 or list(first.shape) != list(second.shape):
        return False
    import onnx_ir as ir
    import onnx_ir.convenience as convenience

    outputs = [ir.Value(name=v.name) for v in (node.outputs[0], total.outputs[0])]
    fused = ir.Node(
        DOMAIN,
        "SkipRMSNorm",
        [first, second, node.inputs[1]],
        convenience.convert_attributes({"epsilon": node.attributes["epsilon"].value}),
        outputs=outputs,
    )
    for old, new in zip((node.outputs[0], total.outputs[0]), outputs, strict=True):
        new.shape, new.type = old.shape, old.type
    graph.insert_before(total, fused)
    replaced = [node.outputs[0], total.outputs[0]]
    convenience.replace_all_uses_with(replaced, outputs, replace_graph_outputs=True)
    return True


def _packed_rotary(graph: ir.Graph, node: ir.Node) -> bool:
    """A rotation of heads that lie apart, [B, H, S, D], done where they lie packed instead."""
    if node.op_type != "RotaryEmbedding" or len(node.inputs) != 3 or node.inputs[0] is None:
        return False
    heads, joined = _heads_apart(node.inputs[0]), _heads_joined(node.outputs[0])
    if heads is None or joined is None:
        return False
    packed, count = heads
    plain = {k: attr.value for k, attr in node.attributes.items() if k != "num_heads"}
    tables = [table for table in node.inputs[1:] if table is not None]
    _replace(graph, joined, [packed, *tables], {**plain, "num_heads": count})
    return True


def _rotary(graph: ir.Graph, node: ir.Node) -> bool:
    """The same for ``x * cos + rotate_half(x) * sin`` with tables [B, S, D] of equal halves."""
    for plain, turned in _either_order(node, "Add"):
        straight, crossed = _producer(plain, "Mul"), _producer(turned, "Mul")
        for x, cos in _either_order(straight, "Mul"):
            for half, sin in _either_order(crossed, "Mul"):
                heads = _heads_apart(x)
                if heads is None or not _is_rotated_half(half, x):
                    continue
                tables = _half_table(cos), _half_table(sin)
                joined = _heads_joined(node.outputs[0])
                if None in tables or joined is None:
                    continue
                packed, count = heads
                halves = [_half(graph, node, table) for table in tables]
                _replace(graph, joined, [packed, *halves], {"num_heads": count})
                return True
    return False


def _heads_apart(value: ir.Value) -> tuple[ir.Value, int] | None:
    """[B, S, H * D] and H, where ``value`` is it as [B, H, S, D]."""
    transpose = _producer(value, "Transpose")
    if transpose is None or list(transpose.attributes["perm"].value) != [0, 2, 1, 3]:
        return None
    view = _producer(transpose.inputs[0], "Reshape")
    shape = value.shape
    if view is None or view.inputs[0] is None or shape is None or not isinstance(shape[1], int):
        return None
    packed, heads = view.inputs[0], shape[1]
    # Three axes may also be [B * S, H, D], as Chameleon norms its heads.
    if packed.shape is None or len(packed.shape) != 3 or isinstance(packed.shape[1], int):
        return None
    return packed, heads


def _heads_joined(value: ir.Value) -> ir.Node | None:
    """The Reshape to [B, S, H * D] that is all that becomes of [B, H, S, D]."""
    uses = list(value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Transpose":
        return None
    transpose = uses[0].node
    uses = list(transpose.outputs[0].uses())
    if list(transpose.attributes["perm"].value) != [0, 2, 1, 3] or len(uses) != 1:
        return None
    joined = uses[0].node
    shape = joined.outputs[0].shape
    return joined if joined.op_type == "Reshape" and shape is not None and len(shape) == 3 else None


def _is_rotated_half(value: ir.Value, x: ir.Value) -> bool:
    """Whether ``value`` is ``cat(-x[..., D/2:], x[..., :D/2])``."""
    joined = _producer(value, "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes["axis"].value not in (-1, 3):
        return False
    negative = _producer(joined.inputs[0], "Neg")
    upper = _producer(negative.inputs[0], "Slice") if negative else None
    lower = _producer(joined.inputs[1], "Slice")
    if upper is None or lower is None or x.shape is None or not isinstance(x.shape[3], int):
        return False
    half = x.shape[3] // 2
    return _cuts(lower, x, 0, half) and _cuts(upper, x, half, x.shape[3])


def _cuts(node: ir.Node, x: ir.Value, start: int, stop: int) -> bool:
    """Whether a Slice is ``x[..., start:stop]``; an end beyond the size means the size."""
    begin, end, axis = (_array(node, at) for at in (1, 2, 3))
    if node.inputs[0] is not x or begin is None or end is None or axis is None:
        return False
    return (
        begin.tolist() == [start]
        and axis.tolist() in ([3], [-1])
        and (end[0] == stop or (end[0] > stop and x.shape is not None and x.shape[3] == stop))
    )


def _half_table(value: ir.Value) -> ir.Value | None:
    """The table [B, S, D] behind [B, 1, S, D], if its halves are the same numbers."""
    spread = _producer(value, "Unsqueeze")
    axes = _array(spread, 1)
    if spread is None or axes is None or axes.tolist() != [1]:
        return None
    table = spread.inputs[0]
    return table if _halves_equal(table) else None


def _halves_equal(value: ir.Value | None) -> bool:
    """Whether ``value`` is elementwise made of ``cat(v, v)`` on its last axis."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Concat":
        return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    if node.op_type not in _TABLE_STEPS:
        return False
    others = node.inputs[1:]
    if node.op_type == "Mul" and any(_scalar(other) is None for other in others):
        return False
    return _halves_equal(node.inputs[0])


def _half(graph: ir.Graph, before: ir.Node, table: ir.Value | None) -> ir.Value:
    """The first half of a table's last axis; one Slice for all layers that read it."""
    import onnx_ir as ir

    assert table is not None
    for use in table.uses():
        if use.node.op_type == "Slice" and str(use.node.name).startswith("rotary_half"):
            return use.node.outputs[0]
    assert table.shape is not None
    width = table.shape[-1]
    assert isinstance(width, int)
    ends = []
    for name, number in (("start", 0), ("stop", width // 2), ("axis", -1)):
        tensor = ir.tensor(np.array([number], np.int64), name=f"rotary_{name}_{table.name}")
        constant = ir.Value(
            name=tensor.name,
            const_value=tensor,
            shape=tensor.shape,
            type=ir.TensorType(tensor.dtype),
        )
        graph.initializers[str(tensor.name)] = constant
        ends.append(constant)
    node = ir.Node("", "Slice", [table, *ends], name=f"rotary_half_{table.name}")
    node.outputs[0].name = f"rotary_half_{table.name}"
    producer = table.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return node.outputs[0]


def _replace(
    graph: ir.Graph, node: ir.Node, inputs: list[ir.Value], attributes: dict[str, Any]
) -> None:
    """Puts a RotaryEmbedding, as ONNX has it since opset 23, in the place of a node."""
    import onnx_ir as ir
    import onnx_ir.convenience as convenience

    old = node.outputs[0]
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    attrs = convenience.convert_attributes(attributes)
    graph.insert_before(node, ir.Node("", "RotaryEmbedding", inputs, attrs, outputs=[new]))
    convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _producer(value: ir.Value | None, op: str, domain: str = "") -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and (node.op_type, node.domain) == (op, domain) else None


def _either_order(node: ir.Node | None, op: str) -> list[tuple[ir.Value, ir.Value]]:
    """Both orders of the inputs of a commutative node; none when it is another node."""
    if node is None or node.op_type != op or node.domain or len(node.inputs) != 2:
        return []
    first, second = node.inputs
    assert first is not None
    assert second is not None
    return [(first, second), (second, first)]


def _array(node: ir.Node | None, at: int) -> Any:
    """An input of a node as a numpy array, if it is a constant."""
    value = node.inputs[at] if node is not None and len(node.inputs) > at else None
    constant = value.const_value if value is not None else None
    return None if constant is None else constant.numpy()


def _scalar(value: ir.Value | None) -> float | None:
    constant = value.const_value if value is not None else None
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None
