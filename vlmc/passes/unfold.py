"""The calls that ``repeat`` left in a program, written out as layers in its ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# The nodes around a layer that ran, and in the place of one that did not. Their attribute ``kind``
# says which of the layers that ran is meant.
DOMAIN = "vlmc"
ENTER, LEAVE, CALL = "Enter", "Leave", "Call"


def unfold(model: ir.Model) -> None:
    """Replaces every Call by a copy of the layer of its kind, in place; nothing else is changed.

    Raises:
        RuntimeError: A layer reads or gives something beside its Enter and Leave: a bug.
    """
    import onnx_ir.convenience as convenience
    import onnx_ir.passes.common as common

    graph = model.graph
    nodes = list(graph)
    marks = [node for node in nodes if node.domain == DOMAIN and node.op_type in (ENTER, LEAVE)]
    kinds = {}
    for enter, leave in zip(marks[::2], marks[1::2], strict=True):
        if (enter.op_type, leave.op_type, _kind(enter)) != (ENTER, LEAVE, _kind(leave)):
            raise RuntimeError("layers are entered and left out of order")
        kinds[_kind(enter)] = (enter, _body(nodes, enter, leave), leave)
    calls = [node for node in nodes if node.domain == DOMAIN and node.op_type == CALL]
    for number, call in enumerate(calls):
        enter, body, leave = kinds[_kind(call)]
        values = dict(zip(enter.outputs, call.inputs, strict=True))
        for node in body:
            _copy(graph, node, values, call, f".copy{number}")
        made = [values.get(value, value) for value in leave.inputs]
        convenience.replace_all_uses_with(call.outputs, made, replace_graph_outputs=True)
        graph.remove(call, safe=True)
    for enter, _, leave in kinds.values():
        for mark in (leave, enter):
            convenience.replace_all_uses_with(mark.outputs, mark.inputs, replace_graph_outputs=True)
            graph.remove(mark, safe=True)
    common.RemoveUnusedNodesPass()(model)


def _kind(node: ir.Node) -> int:
    return int(node.attributes["kind"].as_int())


def _body(nodes: list[ir.Node], enter: ir.Node, leave: ir.Node) -> list[ir.Node]:
    """The nodes between that depend on what enters; the others are the same in every layer."""
    inside = set(enter.outputs)
    body = []
    between = nodes[nodes.index(enter) + 1 : nodes.index(leave)]
    for node in between:
        if any(
            attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()
        ):
            raise RuntimeError(f"a layer holds a graph of its own, in {node.op_type}")
        if inside.intersection(node.inputs):
            body.append(node)
            inside.update(node.outputs)
    allowed = {*body, leave}
    for value in inside:
        strangers = [node for node, _ in value.uses() if node not in allowed]
        if strangers or value.is_graph_output():
            raise RuntimeError(f"'{value.name}' leaves its layer unseen")
    return body


def _copy(
    graph: ir.Graph,
    node: ir.Node,
    values: dict[ir.Value, ir.Value | None],
    before: ir.Node,
    suffix: str,
) -> None:
    """A node of a layer, copied before the call; ``values`` maps its inputs, and then outputs."""
    import onnx_ir as ir

    outputs = []
    for old in node.outputs:
        new = ir.Value(name=f"{old.name}{suffix}", shape=old.shape, type=old.type)
        values[old] = new
        outputs.append(new)
    graph.insert_before(
        before,
        ir.Node(
            node.domain,
            node.op_type,
            [values.get(value, value) if value is not None else None for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=f"{node.name}{suffix}",
        ),
    )
