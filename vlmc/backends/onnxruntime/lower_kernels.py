"""Neutral nodes -> our own CPU kernels, which read weights as they are stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vlmc.backends.onnxruntime.blocks import BITS, PANELS
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import (
    Lowering,
    float_weight,
    only_read_by,
    replace,
    resize_heads,
)
from vlmc.backends.spec import Product

if TYPE_CHECKING:
    import onnx_ir as ir

_QUANTIZED = {"int8_channel", *BITS}
# Where scores are scaled by more than one over the root of a head's size, as Gemma 4's, they are as
# much larger, and so is what their rounding does to a softmax.
_USUAL = 1.01


def lower_node(low: Lowering, node: ir.Node, slower: frozenset[Product]) -> bool:
    """Replaces a neutral node; False where the kernels have no operator for it, or a slower one."""
    if node.op_type == "Linear":
        assert node.inputs[1] is not None
        stored = low.weights[str(node.inputs[1].name)]
        return Product.of(stored) not in slower and _linear(low, node)
    if node.op_type == "Attention":
        return _cached(low, node) if len(node.inputs) > 4 else _tower(low, node)
    return False


def lower_rows(low: Lowering, node: ir.Node) -> bool:
    """Replaces a lookup in a table; False where it lies row by row, which needs no operator."""
    table, ids = node.inputs[:2]
    assert table is not None
    name = str(table.name)
    if low.weights[name].format not in PANELS:
        return False
    parts, attributes = _block_parts(low, name)
    replace(node, [low.add("BlockRows", [ids, *parts], attributes, domain=DOMAIN)])
    return True


def _block_parts(low: Lowering, name: str) -> tuple[list[ir.Value | None], dict[str, Any]]:
    stored = low.weights[name]
    suffixes = ("", ".scales", ".zero_points")
    parts = [low.part(name, suffix) if suffix in stored.parts else None for suffix in suffixes]
    attributes = {
        "K": stored.columns,
        "N": stored.rows,
        "bits": BITS[stored.format],
        "block_size": stored.block,
    }
    return parts, attributes


def product_parts(
    low: Lowering, node: ir.Node
) -> tuple[str, list[ir.Value | None], dict[str, Any]]:
    """The operator for a neutral product, its inputs after x, all of them, and its attributes."""
    _, weight, *bias = node.inputs
    assert weight is not None
    name = str(weight.name)
    stored = low.weights[name]
    added = float_weight(low, str(bias[0].name)) if bias and bias[0] is not None else None
    if stored.format == "int8_channel":
        parts = [low.part(name, ""), low.part(name, ".scales"), added]
        return "LinearPanels", parts, {"K": stored.columns}
    if stored.format in PANELS:
        blocks, attributes = _block_parts(low, name)
        return "LinearBlockPanels", [*blocks, added], attributes
    op = "LinearHalf" if stored.format == "fp16" else "LinearFloat"
    return op, [low.part(name, ""), added], {}


def _linear(low: Lowering, node: ir.Node) -> bool:
    op, parts, attributes = product_parts(low, node)
    while parts[-1] is None:
        parts.pop()
    replace(node, [low.add(op, [node.inputs[0], *parts], attributes, domain=DOMAIN)])
    return True


def _tower(low: Lowering, node: ir.Node) -> bool:
    attributes = {key: attr.value for key, attr in node.attributes.items()}
    if attributes["causal"]:
        return False
    given = {key: attributes[key] for key in ("num_heads", "kv_num_heads", "scale")}
    op = "TowerAttentionBf16" if _rounded(low) else "TowerAttention"
    replace(node, [low.add(op, list(node.inputs), given, domain=DOMAIN)])
    return True


def _rounded(low: Lowering) -> bool:
    """Whether an attention lies between products of quantized numbers.

    There bfloat16 is the lesser rounding by far.
    """
    return any(
        value.name in low.weights and low.weights[value.name].format in _QUANTIZED
        for value in low.graph.inputs
    )


def _cached(low: Lowering, node: ir.Node) -> bool:
    import onnx_ir as ir

    attributes = {key: attr.value for key, attr in node.attributes.items()}
    # Keys of another layer are onnxruntime's to read: our operator always adds some.
    if len(node.inputs) != 7 or not attributes["causal"] or node.inputs[1] is None:
        return False
    *packed, past_key, past_value, lengths, _ = node.inputs
    assert past_key is not None
    assert past_key.shape is not None
    heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
    size, cached = attributes["head_size"], int(past_key.shape[3])
    if size != cached:  # a head is filled up in the cache, whose form both kinds of programs share
        counts = (heads, kv_heads, kv_heads)
        packed = [
            resize_heads(low, x, n, size, cached) for x, n in zip(packed, counts, strict=True)
        ]
    op, tables = "CachedAttention", list[ir.Value | None]()
    rotary = _rotary(node, packed[:2], (heads, kv_heads))
    if rotary is not None:
        op, (packed[:2], tables) = "RotaryAttention", rotary
        packed[2] = _as_it_lies(packed[2])
    half = past_key.dtype == ir.DataType.FLOAT16
    out, *present = low.add(
        f"{op}Half" if half else op,
        [*packed, past_key, past_value, lengths, *tables],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": attributes["scale"],
            "softcap": attributes["softcap"],
            "window": attributes["window"] or 0,
            "rounded": int(_rounded(low) and attributes["scale"] <= _USUAL / math.sqrt(size)),
        },
        domain=DOMAIN,
        outputs=3,
    )
    if size != cached:
        out = resize_heads(low, out, heads, cached, size)
    replace(node, [out, *present])
    return True


def _as_it_lies(value: ir.Value | None) -> ir.Value | None:
    """Values before a Reshape: the operator asks for their number and order, not their shape."""
    made = value.producer() if value is not None else None
    return made.inputs[0] if made is not None and _is(made, "Reshape") else value


def _rotary(
    node: ir.Node, turned: list[ir.Value | None], heads: tuple[int, int]
) -> tuple[list[ir.Value | None], list[ir.Value | None]] | None:
    """Query and key before the rotation that an attention alone reads, and its tables."""
    found = [value.producer() if value is not None else None for value in turned]
    plain: list[ir.Value | None] = []
    for value, made, count in zip(turned, found, heads, strict=True):
        if made is None or not _is(made, "RotaryEmbedding"):
            return None
        attributes = {key: attr.value for key, attr in made.attributes.items()}
        if len(made.inputs) != 3 or attributes.get("interleaved"):
            return None
        if attributes.get("num_heads") != count or not only_read_by(value, node):
            return None
        plain.append(made.inputs[0])
    first, second = (list(made.inputs[1:]) for made in found if made is not None)
    return (plain, first) if all(a is b for a, b in zip(first, second, strict=True)) else None


def _is(node: ir.Node, op: str) -> bool:
    return (node.domain, node.op_type) == ("", op)
