"""Fused patterns compute what they replace, and near misses stay as they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.passes.fuse import fuse

HEADS, WIDTH = 2, 8
HALF = WIDTH // 2

ROTARY = """
<ir_version: 10, opset_import: ["" : 23]>
rotary (float[batch,step,16] x, float[batch,step,{table}] angle) => (float[batch,step,16] y)
<int64[4] apart = {{0, 0, 2, 8}}, int64[3] joined = {{0, 0, 16}}, int64[1] one = {{1}},
 int64[1] zero = {{0}}, int64[1] half = {{{cut}}}, int64[1] end = {{9223372036854775807}},
 int64[1] last = {{3}}>
{{
  both = {both}
  cos = Cos(both)
  sin = Sin(both)
  wide_cos = Unsqueeze(cos, one)
  wide_sin = Unsqueeze(sin, one)
  heads = Reshape(x, apart)
  turned = Transpose<perm = [0, 2, 1, 3]>(heads)
  straight = Mul(turned, wide_cos)
  lower = Slice(turned, zero, half, last, one)
  upper = Slice(turned, half, end, last, one)
  minus = Neg(upper)
  crossed = Concat<axis = -1>(minus, lower)
  rotated = Mul(crossed, wide_sin)
  total = Add(straight, rotated)
  back = Transpose<perm = [0, 2, 1, 3]>(total)
  y = Reshape(back, joined)
}}
"""
EQUAL = "Concat<axis = -1>(angle, angle)"

SKIP = """
<ir_version: 10, opset_import: ["" : 23]>
skip (float[batch,step,16] a, float[{other},step,16] b, float[16] weight)
  => (float[batch,step,16] normed, float[batch,step,16] again)
{{
  total = Add(a, b)
  normed = RMSNormalization<axis = -1, epsilon = 1e-5>(total, weight)
  again = Add(total, normed)
}}
"""


def loaded(text: str) -> ir.Model:
    """A model with the shapes that the exporter would leave on every value."""
    proto = onnx.shape_inference.infer_shapes(parser.parse_model(text), data_prop=True)
    return ir.from_proto(proto)


def run(model: ir.Model, feeds: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_rotary_with_equal_halves_becomes_one_node() -> None:
    text = ROTARY.format(table=HALF, cut=HALF, both=EQUAL)
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((2, 5, HEADS * WIDTH), np.float32),
        "angle": random.standard_normal((2, 5, HALF), np.float32),
    }
    before = run(loaded(text), feeds)
    model = loaded(text)
    assert fuse(model.graph)["rotary"] == 1
    assert operators(model)["RotaryEmbedding"] == 1
    assert not operators(model).keys() & {"Transpose", "Neg", "Reshape"}
    np.testing.assert_allclose(run(model, feeds)[0], before[0], atol=1e-6)


@pytest.mark.parametrize(
    ("table", "cut", "both"),
    [
        pytest.param(WIDTH, HALF, "Identity(angle)", id="halves-may-differ"),
        pytest.param(HALF, HALF - 1, EQUAL, id="cut-off-the-middle"),
        pytest.param(HALF, HALF, "Concat<axis = -1>(angle, one_more)", id="another-table"),
    ],
)
def test_a_near_miss_of_rotary_stays(table: int, cut: int, both: str) -> None:
    text = ROTARY.format(table=table, cut=cut, both=both)
    text = text.replace("  both =", "  one_more = Neg(angle)\n  both =") if "more" in both else text
    model = loaded(text)
    before = operators(model)
    assert fuse(model.graph)["rotary"] == 0
    assert operators(model)["RotaryEmbedding"] == 0
    assert operators(model)["Mul"] == before["Mul"]


def test_heads_that_lie_apart_are_not_packed_ones() -> None:
    text = ROTARY.format(table=HALF, cut=HALF, both=EQUAL)
    text = text.replace("float[batch,step,16] x", f"float[rows,{HEADS},{WIDTH}] x")
    text = text.replace("{0, 0, 2, 8}", "{2, 5, 2, 8}")
    assert fuse(loaded(text).graph)["rotary"] == 0


def test_a_normalized_sum_becomes_one_node_that_gives_both() -> None:
    text = SKIP.format(other="batch")
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((2, 3, 16), np.float32) for name in "ab"}
    feeds["weight"] = random.standard_normal(16).astype(np.float32)
    before = run(loaded(text), feeds)
    model = loaded(text)
    assert fuse(model.graph)["skip_rms_norm"] == 1
    lower_graph(model, {})
    assert operators(model)["SkipSimplifiedLayerNormalization"] == 1
    for found, expected in zip(run(model, feeds), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_sum_that_broadcasts_is_not_a_skip_connection() -> None:
    model = loaded(SKIP.format(other=1))
    assert fuse(model.graph)["skip_rms_norm"] == 0
    assert operators(model)["RMSNormalization"] == 1
