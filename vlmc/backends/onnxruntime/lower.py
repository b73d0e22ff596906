"""Neutral graphs -> onnxruntime's CPU kernels; caches in place, weights by reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmc.backends.onnxruntime import (
    lower_chains,
    lower_groups,
    lower_kernels,
    lower_norms,
    native,
)
from vlmc.backends.onnxruntime.delta import gated_delta
from vlmc.backends.onnxruntime.embedding import gather_rows
from vlmc.backends.onnxruntime.experts import experts
from vlmc.backends.onnxruntime.products import linear
from vlmc.backends.onnxruntime.rewrite import (
    Lowering,
    float_weight,
    replace,
    resize_heads,
    weight_of,
)
from vlmc.backends.onnxruntime.short_conv import short_conv
from vlmc.backends.spec import Product, StoredWeight
from vlmc.errors import VlmcError

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"


def lower_graph(
    model: ir.Model,
    weights: Mapping[str, StoredWeight],
    *,
    kernels: bool = False,
    slower: frozenset[Product] = frozenset(),
) -> None:
    """Replaces, in place, every neutral node and every weight input of a graph.

    Args:
        model: A neutral graph; inputs named as in ``weights`` are weights.
        weights: Where and in which format each weight is stored.
        kernels: For our own kernels, where they have one; else for onnxruntime's.
        slower: Products that are onnxruntime's all the same.
    """
    import onnx_ir.passes.common as common

    graph = model.graph
    low = Lowering(graph, weights)
    if kernels:
        lower_groups.merge_products(low, slower)
    for node in list(graph):
        low.before = node
        if node.domain == native.DOMAIN:  # merged, its weights as they are stored
            continue
        if node.domain == "vlmc":
            if not (kernels and lower_kernels.lower_node(low, node, slower)):
                _NEUTRAL[node.op_type](low, node)
        elif node.op_type == "Gather" and weight_of(low, node.inputs[0]) is not None:
            if not (kernels and lower_kernels.lower_rows(low, node)):
                _embedding(low, node)
        else:
            for i, value in enumerate(node.inputs):
                if weight_of(low, value) is not None:
                    node.replace_input_with(i, float_weight(low, str(value.name)))
    kept = [value for value in graph.inputs if value.name not in weights]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    common.RemoveUnusedNodesPass()(model)
    if kernels:  # products that were merged are gone by now
        lower_norms.merge_norms(low)
        lower_chains.merge_chains(low)
    model.opset_imports.pop("vlmc", None)
    model.opset_imports[MICROSOFT] = 1
    if kernels:
        model.opset_imports[native.DOMAIN] = native.INTERFACE


def _embedding(low: Lowering, node: ir.Node) -> None:
    weight, ids = node.inputs[0], node.inputs[1]
    assert weight is not None
    assert ids is not None
    replace(node, [gather_rows(low, str(weight.name), ids)])


def _experts(low: Lowering, node: ir.Node) -> None:
    replace(node, [experts(low, node)])


def _short_conv(low: Lowering, node: ir.Node) -> None:
    for i, value in enumerate(node.inputs):
        if value is not None and weight_of(low, value) is not None:
            node.replace_input_with(i, float_weight(low, str(value.name)))
    replace(node, [short_conv(low, node)])


def _gated_delta(low: Lowering, node: ir.Node) -> None:
    replace(node, gated_delta(low, node))


def _attention(low: Lowering, node: ir.Node) -> None:
    attributes = {key: attr.value for key, attr in node.attributes.items()}
    if len(node.inputs) <= 4:
        if attributes["causal"]:
            raise VlmcError("the vision tower attends causally, which is not supported yet")
        query, key, value, *bias = node.inputs
        if attributes["kv_num_heads"] != attributes["num_heads"]:
            key, value = (_repeat_heads(low, x, attributes) for x in (key, value))
        out = low.add(
            "MultiHeadAttention",
            [query, key, value, *([None, None, *bias] if bias else [])],
            {"num_heads": attributes["num_heads"], "scale": attributes["scale"]},
            domain=MICROSOFT,
        )
        replace(node, [out])
        return
    *packed, past_key, past_value, lengths, total = node.inputs[:7]
    bias = node.inputs[7] if len(node.inputs) > 7 else None
    assert lengths is not None
    assert past_key is not None
    assert past_key.shape is not None
    heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
    # Zeros behind a head's numbers change no product; the kernel takes multiples of eight only.
    size, cached = attributes["head_size"], int(past_key.shape[3])
    adds = packed[1] is not None  # if not, another layer's keys and values are read
    if size != cached:
        counts = (heads, kv_heads, kv_heads) if adds else (heads,)
        packed = [
            resize_heads(low, x, n, size, cached) for x, n in zip(packed, counts, strict=False)
        ]
    if not adds:
        nothing = _no_keys(low, packed[0], kv_heads * cached)
        packed = [packed[0], nothing, nothing]
    one = low.constant(np.int32(1))
    last_index = low.shared("last", lengths, lambda: low.add("Sub", [lengths, one]))
    inputs = [*packed, past_key, past_value, last_index, total]
    common = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": attributes["scale"],
        "softcap": attributes["softcap"],
    }
    causal = (inputs, {**common, "local_window_size": attributes["window"] or -1})
    if bias is None:
        made = low.add("GroupQueryAttention", *causal, domain=MICROSOFT, outputs=len(node.outputs))
        out, *present = made if adds else (made,)
    else:
        # The kernel knows a window only where it is causal, and is fastest without a bias.
        empty = low.shared("empty", bias, lambda: _is_empty(low, bias))
        biased = ([*inputs, None, None, None, bias], {**common, "causal": 0})
        branches = {"then_branch": causal, "else_branch": biased}
        out, *present = low.choose(
            empty, "GroupQueryAttention", branches, domain=MICROSOFT, like=node.outputs
        )
    if size != cached:
        out = resize_heads(low, out, heads, cached, size)
    replace(node, [out, *present])


def _no_keys(low: Lowering, query: ir.Value | None, width: int) -> ir.Value:
    """Keys [B, 0, width] of a step that adds none, which the kernel knows."""
    assert query is not None
    ends = [[0, 0], [0, width], [1, 2]]
    cuts = [low.constant(np.array(end, np.int64)) for end in ends]
    nothing: ir.Value = low.add("Slice", [query, *cuts])
    return nothing


def _repeat_heads(low: Lowering, x: ir.Value | None, attributes: Mapping[str, Any]) -> ir.Value:
    """[B, S, KV * D] -> [B, S, H * D], each head as often as it has queries."""
    heads, of, size = (attributes[key] for key in ("num_heads", "kv_num_heads", "head_size"))
    x = low.add("Reshape", [x, low.constant(np.array([0, 0, of, 1, size], np.int64))])
    x = low.add("Tile", [x, low.constant(np.array([1, 1, 1, heads // of, 1], np.int64))])
    x = low.add("Reshape", [x, low.constant(np.array([0, 0, heads * size], np.int64))])
    return x


def _is_empty(low: Lowering, value: ir.Value) -> ir.Value:
    count = low.add("Size", [value])
    empty: ir.Value = low.add("Equal", [count, low.constant(np.int64(0))])
    return empty


def _skip_rms_norm(low: Lowering, node: ir.Node) -> None:
    first, second, weight = node.inputs
    assert weight is not None
    gamma = float_weight(low, str(weight.name)) if weight_of(low, weight) else weight
    normed, _, _, total = low.add(
        "SkipSimplifiedLayerNormalization",
        [first, second, gamma],
        {"epsilon": node.attributes["epsilon"].value},
        domain=MICROSOFT,
        outputs=4,
    )
    for unused in normed.producer().outputs[1:3]:
        unused.name = ""
    replace(node, [normed, total])


_NEUTRAL: dict[str, Callable[[Lowering, Any], None]] = {
    "Attention": _attention,
    "Experts": _experts,
    "GatedDelta": _gated_delta,
    "Linear": linear,
    "ShortConv": _short_conv,
    "SkipRMSNorm": _skip_rms_norm,
}
