"""A sum's norm that products of our kernels alone read -> one node with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering, only_read_by, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_NORM = ("com.microsoft", "SkipSimplifiedLayerNormalization")
_PRODUCTS = {
    form.format(kind)
    for form in ("Linear{}", "Linear{}x2", "Linear{}x3", "Gated{}", "Activated{}")
    for kind in ("Panels", "BlockPanels", "Float", "Half")
}


def merge_norms(low: Lowering) -> None:
    """Merges norms into the products after them, in place; all else is lowered already."""
    for node in list(low.graph):
        if node.domain == DOMAIN and node.op_type in _PRODUCTS:
            norm = node.inputs[0].producer() if node.inputs[0] is not None else None
            if norm is not None and (norm.domain, norm.op_type) == _NORM and _is_theirs(norm, node):
                _merge(low, norm, node)
    low.graph.sort()  # what reads a sum may have stood before the products


def _is_theirs(norm: ir.Node, node: ir.Node) -> bool:
    """Whether nothing else reads the norm, and its sum is no output that has a name to keep."""
    return only_read_by(norm.outputs[0], node) and not norm.outputs[3].is_graph_output()


def _merge(low: Lowering, norm: ir.Node, node: ir.Node) -> None:
    import onnx_ir.convenience as convenience

    low.before = node
    given = {**node.attributes, **norm.attributes}
    attributes = {key: attr.value for key, attr in given.items()}
    products = len(node.outputs)
    made = low.add(
        f"Normed{node.op_type}",
        [*norm.inputs[:3], *node.inputs[1:]],
        attributes,
        domain=DOMAIN,
        outputs=products + 2,
    )
    replace(node, made[:products])
    total, new = norm.outputs[3], made[products]
    new.shape, new.type = total.shape, total.type
    convenience.replace_all_uses_with(total, new, replace_graph_outputs=True)
    low.graph.remove(norm, safe=True)
