"""A sum's norm that products of our kernels alone read -> one node with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering, only_read_by, replace

if TYPE_CHECKING:
    import onnx_ir as ir

_SKIP = ("com.microsoft", "SkipSimplifiedLayerNormalization")
_CENTERED = {("", "LayerNormalization"): 1, ("", "RMSNormalization"): 0}
_FORMS = ("Linear{}", "Linear{}x2", "Linear{}x3", "Gated{}", "Activated{}")
_PRODUCTS = {form.format(k) for form in _FORMS for k in ("Panels", "BlockPanels", "Float", "Half")}
# What is multiplied is an output too, but for these: they have it as codes only.
_OF_CODES = {form.format("Panels") for form in _FORMS}


class _Norm(NamedTuple):
    """A norm of a sum: two terms, the norm's weights, of which the second may be absent."""

    inputs: list[ir.Value | None]
    epsilon: float
    centered: int
    total: ir.Value
    nodes: tuple[ir.Node, ...]  # the last ones first


def merge_norms(low: Lowering) -> None:
    """Merges norms into the products after them, in place; all else is lowered already."""
    for node in list(low.graph):
        if (
            node.domain == DOMAIN
            and node.op_type in _PRODUCTS
            and only_read_by(node.inputs[0], node)
        ):
            norm = _norm(node.inputs[0])
            # A sum that is an output of the graph has a name to keep.
            if norm is not None and not norm.total.is_graph_output():
                _merge(low, norm, node)
    low.graph.sort()  # what reads a sum may have stood before the products


def _norm(x: ir.Value | None) -> _Norm | None:
    node = x.producer() if x is not None else None
    if node is None or x is not node.outputs[0]:
        return None
    kind, inputs = (node.domain, node.op_type), list(node.inputs)
    given = {key: attr.value for key, attr in node.attributes.items()}
    epsilon = float(given.get("epsilon", 1e-5))
    if kind == _SKIP:
        return _Norm([*inputs[:3], None], epsilon, 0, node.outputs[3], (node,))
    total, weights = inputs[0], inputs[1:]
    sum_of = total.producer() if total is not None else None
    if kind not in _CENTERED or total is None or sum_of is None or not _adds_alike(sum_of):
        return None
    last = len(_known(total.shape or sum_of.inputs[0].shape)) - 1
    one_axis = all(value is None or len(_known(value.shape)) == 1 for value in weights)
    if given.get("axis", -1) not in (-1, last) or not one_axis or len(node.outputs) > 1:
        return None
    weights += [None] * (2 - len(weights))
    return _Norm([*sum_of.inputs, *weights], epsilon, _CENTERED[kind], total, (node, sum_of))


def _adds_alike(node: ir.Node) -> bool:
    """Whether a node is the sum of two values of one shape, whatever that is at run time."""
    if (node.domain, node.op_type) != ("", "Add"):
        return False
    first, second = (_known(value.shape if value is not None else None) for value in node.inputs)
    return bool(first) and first == second


def _known(shape: ir.Shape | None) -> list[int | str]:
    """Sizes or their names; empty where one has neither."""
    sizes = [size if isinstance(size, int) else size.value for size in shape or ()]
    return [] if None in sizes else [size for size in sizes if size is not None]


def _merge(low: Lowering, norm: _Norm, node: ir.Node) -> None:
    import onnx_ir.convenience as convenience

    low.before = node
    attributes = {key: attr.value for key, attr in node.attributes.items()}
    products = len(node.outputs)
    made = low.add(
        f"Normed{node.op_type}",
        [*norm.inputs, *node.inputs[1:]],
        attributes | {"epsilon": norm.epsilon, "centered": norm.centered},
        domain=DOMAIN,
        outputs=products + (1 if node.op_type in _OF_CODES else 2),
    )
    replace(node, made[:products])
    total, new = norm.total, made[products]
    new.shape, new.type = total.shape, total.type
    convenience.replace_all_uses_with(total, new, replace_graph_outputs=True)
    for one in norm.nodes:
        low.graph.remove(one, safe=True)
