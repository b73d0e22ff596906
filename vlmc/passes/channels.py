"""Where a neutral graph lets factors move from a layer's input into what makes that input.

Everything is read off the graph's structure. A place is a fold only if nothing but linear layers
reads the channels, and each step back to the parameters that make them keeps channels apart and
passes a factor on: a norm's weight, a product with a gate, attention's values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmc.passes.scaling import Fold, Producer

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "vlmc"
_NORMS = {("", "RMSNormalization"), ("", "LayerNormalization"), (DOMAIN, "SkipRMSNorm")}


def find_folds(graph: ir.Graph, kept: Collection[str]) -> list[Fold]:
    """The folds of a simplified neutral graph, in the order of its nodes.

    Args:
        graph: Weights are its inputs, named by parameter.
        kept: Parameters to leave as they are: tables, and what another graph reads too.
    """
    folds: list[Fold] = []
    seen: set[str] = set()
    for node in graph:
        value = node.inputs[0] if node.inputs else None
        if not _is_linear(node) or value is None or str(value.name) in seen:
            continue
        seen.add(str(value.name))
        readers = [use.node for use in value.uses()]
        weights = [_parameter(reader.inputs[1], kept) for reader in readers if _is_linear(reader)]
        if len(weights) != len(readers) or None in weights or value.is_graph_output():
            continue
        if any(use.idx != 0 for use in value.uses()):
            continue
        columns = {weight.shape[1] for weight in weights if weight and weight.shape}
        width = next(iter(columns))
        fold = _trace(value, width, kept) if len(columns) == 1 else None
        if fold is not None:
            names = tuple(str(weight.name) for weight in weights if weight)
            folds.append(replace(fold, consumers=names))
    return folds


def _trace(value: ir.Value, width: int, kept: Collection[str]) -> Fold | None:
    """The parameters that make the channels of ``value [..., width]``; consumers left open."""
    node = value.producer()
    if node is None or value.is_graph_output():
        return None
    kind = (node.domain, node.op_type)
    if kind in _NORMS and value is node.outputs[0]:
        return _norm(node, width, kept)
    if _is_linear(node):
        return _plain([_parameter(v, kept) for v in node.inputs[1:]], width)
    if kind == ("", "Mul"):
        for operand in node.inputs:
            vector = _parameter(operand, kept)
            is_vector = vector is not None and len(vector.shape or ()) == 1
            fold = _plain([vector], width) if is_vector else _alone(operand, width, kept)
            if fold is not None:
                return fold
        return None
    if kind in {("", "Reshape"), ("", "Gather")}:
        # What it is made from is checked to have ``width`` channels too: rows stay rows, or are
        # chosen from.
        return _alone(node.inputs[0], width, kept)
    if kind == (DOMAIN, "Attention") and value is node.outputs[0]:
        return _attention(node, width, kept)
    return None


def _alone(value: ir.Value | None, width: int, kept: Collection[str]) -> Fold | None:
    """As ``_trace``, for a value that must have no other reader."""
    if value is None or len(list(value.uses())) != 1:
        return None
    return _trace(value, width, kept)


def _norm(node: ir.Node, width: int, kept: Collection[str]) -> Fold | None:
    axis = node.attributes.get("axis")
    if axis is not None and axis.value != -1:
        return None
    at = 2 if node.op_type == "SkipRMSNorm" else 1
    if node.op_type == "LayerNormalization":
        return _plain([_parameter(value, kept) for value in node.inputs[at:]], width)
    weight = node.inputs[at]
    offset = 0.0
    total = weight.producer() if weight is not None else None
    if total is not None and (total.domain, total.op_type) == ("", "Add"):
        # Gemma's norms multiply with 1 + weight.
        numbers = [(v, _number(v)) for v in total.inputs]
        sums = [(v, n) for (v, _), (_, n) in zip(numbers, reversed(numbers), strict=True)]
        weight, added = next(((v, n) for v, n in sums if n is not None), (None, 0.0))
        offset = added if len(list(total.outputs[0].uses())) == 1 else 0.0
        weight = weight if offset else None
    fold = _plain([_parameter(weight, kept)], width)
    return fold and replace(fold, producers=(replace(fold.producers[0], offset=offset),))


def _attention(node: ir.Node, width: int, kept: Collection[str]) -> Fold | None:
    """Each query head answers with a mixture of the values of its group's one head."""
    heads, kv_heads, size = (
        int(node.attributes[name].value) for name in ("num_heads", "kv_num_heads", "head_size")
    )
    if heads * size != width or heads % kv_heads:
        return None
    if any(use.node.domain == DOMAIN for value in node.outputs[1:] for use in value.uses()):
        return None  # another layer reads these values too
    fold = _alone(node.inputs[2], kv_heads * size, kept)
    if fold is None or fold.group != 1:
        return None
    return replace(fold, heads=kv_heads, group=heads // kv_heads, size=size)


def _plain(parameters: list[ir.Value | None], width: int) -> Fold | None:
    """A fold of the rows of these parameters, if all are there and have ``width``."""
    producers = []
    for value in parameters:
        if value is None or value.shape is None or value.shape[0] != width:
            return None
        producers.append(Producer(str(value.name)))
    return Fold(tuple(producers), (), 1, 1, width) if producers else None


def _parameter(value: ir.Value | None, kept: Collection[str]) -> ir.Value | None:
    """The value, if it is a weight that one node reads, and free to change."""
    if value is None or not value.is_graph_input() or value.shape is None:
        return None
    if not all(isinstance(size, int) for size in value.shape) or len(list(value.uses())) != 1:
        return None
    return None if str(value.name) in kept else value


def _number(value: ir.Value | None) -> float | None:
    constant: Any = value.const_value if value is not None else None
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def _is_linear(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "Linear")
