"""Products of one x -> one node of our kernels: x is read, and threads are woken, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.backends.onnxruntime.lower_kernels import product_parts
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering, only_read_by, replace
from vlmc.backends.spec import Product

if TYPE_CHECKING:
    import onnx_ir as ir

# Of the operators' names: LinearPanelsx3, GatedPanels, ActivatedBlockPanels.
_KINDS = {
    "LinearPanels": "Panels",
    "LinearBlockPanels": "BlockPanels",
    "LinearFloat": "Float",
    "LinearHalf": "Half",
}
_FORMATS = {"int8_channel", "int4_panel", "fp32", "fp16"}
_MOST = 3
# The kernels' numbers for activations.
_SILU, _GELU_TANH, _GELU_QUICK, _GELU = 1, 2, 3, 4
_QUICK = 1.702  # quick GELU is x sigmoid(1.702 x)


def merge_products(low: Lowering, slower: frozenset[Product]) -> None:
    """Merges neutral products that read the same value, in place.

    Two of one width, one of which is activated and multiplied by the other, become one node that
    gives what they are for; so does one that is activated only. Other ones become nodes of two or
    three outputs.
    """
    for node in list(low.graph):
        if node.op_type == "Mul" and node.domain == "":
            _gate(low, node, slower)
    for node in list(low.graph):
        _activate(low, node, slower)
    groups: dict[Any, list[ir.Node]] = {}
    for node in low.graph:
        key = _key(low, node, slower)
        if key is not None:
            groups.setdefault(key, []).append(node)
    for found in groups.values():
        for at in range(0, len(found), _MOST):
            if len(nodes := found[at : at + _MOST]) > 1:
                _merge(low, nodes)


def _key(low: Lowering, node: ir.Node | None, slower: frozenset[Product]) -> Any:
    """Equal for products that one node can compute; None where the kernels are not for it."""
    if node is None or (node.domain, node.op_type) != ("vlmc", "Linear"):
        return None
    stored = low.weights[_weight(node)]
    if stored.format not in _FORMATS or Product.of(stored) in slower:
        return None
    return node.inputs[0], stored.format, stored.block, stored.columns


def _weight(node: ir.Node) -> str:
    assert node.inputs[1] is not None
    return str(node.inputs[1].name)


def _gate(low: Lowering, node: ir.Node, slower: frozenset[Product]) -> None:
    """Merges two products into one node where ``node`` multiplies one's activation by the other."""
    for activated, other in (node.inputs, node.inputs[::-1]):
        assert activated is not None
        assert other is not None
        by = activated.producer()
        found = _activation(by) if by is not None and only_read_by(activated, node) else None
        if found is None:
            continue
        kind, opened = found
        pair = [opened.producer(), other.producer()]
        key = _key(low, pair[0], slower)
        if key is None or key != _key(low, pair[1], slower) or pair[0] is pair[1]:
            continue
        nodes = [p for p in pair if p is not None]
        rows = {low.weights[_weight(p)].rows for p in nodes}
        if len(rows) == 1 and only_read_by(other, node) and not opened.is_graph_output():
            low.before = node
            op, inputs, attributes = _joined(low, nodes)
            attributes["gate"] = kind
            replace(node, [low.add(f"Gated{op}", inputs, attributes, domain=DOMAIN)])
            return


def _activate(low: Lowering, node: ir.Node, slower: frozenset[Product]) -> None:
    """Merges a product and the activation that ``node`` gives, where it is one."""
    found = _activation(node)
    product = found[1].producer() if found is not None else None
    if found is None or product is None or _key(low, product, slower) is None:
        return
    low.before = node
    op, inputs, attributes = _joined(low, [product])
    attributes["gate"] = found[0]
    while inputs[-1] is None:
        inputs.pop()
    replace(node, [low.add(f"Activated{op}", inputs, attributes, domain=DOMAIN)])


def _activation(node: ir.Node) -> tuple[int, ir.Value] | None:
    """The kernels' number of the activation that a node gives, and what it is of.

    None where it is another one, or where something else reads what is between.
    """
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Gelu":
        form = node.attributes.get("approximate")
        tanh = form is not None and form.value == "tanh"
        x = node.inputs[0]
        return (_GELU_TANH if tanh else _GELU, x) if only_read_by(x, node) else None
    if node.op_type != "Mul":
        return None
    for x, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = gate.producer() if gate is not None else None
        if sigmoid is None or gate is None or x is None or not only_read_by(gate, node):
            continue
        if (sigmoid.domain, sigmoid.op_type) != ("", "Sigmoid"):
            continue
        if sigmoid.inputs[0] is x:
            return (_SILU, x) if only_read_by(x, node, sigmoid) else None
        scaled = sigmoid.inputs[0]
        times = scaled.producer() if scaled is not None else None
        if scaled is not None and times is not None and _is_quick(times, x):
            both = only_read_by(scaled, sigmoid) and only_read_by(x, node, times)
            return (_GELU_QUICK, x) if both else None
    return None


def _is_quick(node: ir.Node, x: ir.Value) -> bool:
    """Whether a node is ``1.702 x``."""
    if (node.domain, node.op_type) != ("", "Mul") or x not in node.inputs:
        return False
    other = node.inputs[1] if node.inputs[0] is x else node.inputs[0]
    constant = other.const_value if other is not None else None
    return (
        constant is not None and constant.size == 1 and abs(constant.numpy().item() - _QUICK) < 1e-6
    )


def _joined(
    low: Lowering, nodes: list[ir.Node]
) -> tuple[str, list[ir.Value | None], dict[str, Any]]:
    inputs: list[ir.Value | None] = [nodes[0].inputs[0]]
    op, attributes = "", dict[str, Any]()
    for at, node in enumerate(nodes):
        op, parts, given = product_parts(low, node)
        inputs += parts
        # Products of one node differ in their channels alone: N, N2, N3.
        attributes |= {f"N{at + 1}" if at and key == "N" else key: given[key] for key in given}
    return _KINDS[op], inputs, attributes


def _merge(low: Lowering, nodes: list[ir.Node]) -> None:
    low.before = nodes[0]
    op, inputs, attributes = _joined(low, nodes)
    outputs = low.add(
        f"Linear{op}x{len(nodes)}", inputs, attributes, domain=DOMAIN, outputs=len(nodes)
    )
    for node, output in zip(nodes, outputs, strict=True):
        replace(node, [output])
