"""Folds are found where a factor may move, and nowhere else."""

import onnx_ir as ir
import pytest
from onnx import parser

from vlmc.passes.channels import find_folds
from vlmc.passes.scaling import Fold, Producer

HEAD = '<ir_version: 10, opset_import: ["" : 23, "vlmc" : 1]>\n'
# Two heads of queries for each of keys and values; what follows differs.
BLOCK = """
block (float[b,s,8] x, float[8] n, float[8,8] q, float[4,8] k, float[4,8] v, float[4] vb,
       float[8,8] o, float[8] n2, float[8] b2, float[12,8] gate, float[12,8] up, float[8,12] down)
  => (float[b,s,8] y{outputs})
<float one = {{1.0}}, int64[3] joined = {{0, 0, 4}}>
{{
  {norm}
  qs = vlmc.Linear(h, q)
  ks = vlmc.Linear(h, k)
  vs = vlmc.Linear(h, v, vb)
  vr = Reshape(vs, joined)
  a = vlmc.Attention<num_heads = 4, kv_num_heads = 2, head_size = 2>(qs, ks, vr)
  ao = vlmc.Linear(a, o)
  m = LayerNormalization(ao, n2, b2)
  g = vlmc.Linear(m, gate)
  act = Gelu(g)
  u = vlmc.Linear(m, up)
  both = Mul({product})
  y = vlmc.Linear(both, down)
}}
"""
PLAIN = "h = RMSNormalization<axis = -1>(x, n)"
ATTENTION = Fold((Producer("n"),), ("q", "k", "v"), 1, 1, 8)
VALUES = Fold((Producer("v"), Producer("vb")), ("o",), 2, 2, 2)
SECOND = Fold((Producer("n2"), Producer("b2")), ("gate", "up"), 1, 1, 8)
GATED = Fold((Producer("up"),), ("down",), 1, 1, 12)


def folds(norm=PLAIN, product="act, u", outputs="", kept=()):
    text = HEAD + BLOCK.format(norm=norm, product=product, outputs=outputs)
    return find_folds(ir.from_proto(parser.parse_model(text)).graph, kept)


@pytest.mark.parametrize("product", ["act, u", "u, act"])
def test_a_block_has_four(product):
    assert folds(product=product) == [ATTENTION, VALUES, SECOND, GATED]


def test_a_norm_that_adds_one_to_its_weight():
    found = folds("w = Add(n, one)\n h = RMSNormalization<axis = -1>(x, w)")
    assert found[0] == Fold((Producer("n", offset=1.0),), ("q", "k", "v"), 1, 1, 8)


def test_a_norm_left_in_its_parts():
    assert folds("r = Sqrt(x)\n h = Mul(n, r)")[0] == ATTENTION


@pytest.mark.parametrize(
    "norm",
    [
        "h = Identity(x)",
        "h = Gelu(x)",
        "h = RMSNormalization<axis = 1>(x, n)",
        "w = Sqrt(n)\n h = RMSNormalization<axis = -1>(x, w)",
        "w = Add(n, one)\n other = Neg(w)\n h = RMSNormalization<axis = -1>(x, w)",
        "other = Neg(n)\n h = RMSNormalization<axis = -1>(x, n)",
        PLAIN + "\n other = Neg(h)",
        PLAIN + "\n other = vlmc.Linear(x, h)",
    ],
)
def test_no_fold_into_what_else_is_read(norm):
    assert folds(norm) == [VALUES, SECOND, GATED]


def test_no_fold_of_what_the_program_answers():
    assert folds(outputs=", float[b,s,8] h") == [VALUES, SECOND, GATED]
    assert folds(outputs=", float[b,s,12] u") == [ATTENTION, VALUES, SECOND]


def test_no_fold_through_a_function_of_the_channels():
    assert folds(product="act, act") == [ATTENTION, VALUES, SECOND]


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ("n", [VALUES, SECOND, GATED]),
        ("k", [VALUES, SECOND, GATED]),
        ("vb", [ATTENTION, SECOND, GATED]),
        ("down", [ATTENTION, VALUES, SECOND]),
    ],
)
def test_no_fold_of_what_must_stay(kept, left):
    assert folds(kept={kept}) == left
