"""What only the last token of a step is read of is computed for it alone, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.passes.test_fuse import loaded, run
from vlmc.passes.last_token import keep_last_token

# Two products behind `seen`, which mixes tokens; `weight` is the same for all of them.
LAYER = """
<ir_version: 10, opset_import: ["" : 23, "vlmc" : 1]>
layer (float[batch,step,4] x, float[4,4] up, float[4,4] down, float[4] weight)
  => (float[batch,4] logits{other})
<int64 last = {{{chosen}}}>
{{
  seen = CumSum(x, one)
  wide = vlmc.Linear(seen, up)
  gate = Sigmoid(wide)
  open = Mul(wide, gate)
  narrow = vlmc.Linear(open, down)
  {behind}
  normed = RMSNormalization<axis = {axis}, epsilon = 1e-5>(total, weight)
  logits = Gather<axis = 1>(normed, last)
}}
<domain: "vlmc", opset_import: ["" : 23]>
Linear (a, b) => (c)
{{
  turned = Transpose(b)
  c = MatMul(a, turned)
}}
"""
SUM = "total = Add(seen, narrow)"


def layer(other: str = "", chosen: int = -1, behind: str = SUM, axis: int = -1) -> ir.Model:
    text = LAYER.format(other=other, chosen=chosen, behind=behind, axis=axis)
    model = loaded(text.replace("<int64 last", "<int64 one = {1}, int64 last"))
    # Shape inference doesn't enter the function of another domain.
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                value.shape = ir.Shape(["batch", "step", 4])
    return model


def feeds() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    shapes = {"x": (2, 5, 4), "up": (4, 4), "down": (4, 4), "weight": (4,)}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def chosen(model: ir.Model) -> list[str]:
    """The values whose last token is taken."""
    return [str(node.inputs[0].name) for node in model.graph if node.op_type == "Gather"]  # type: ignore[union-attr]


def test_the_choice_moves_behind_what_mixes_tokens() -> None:
    model = layer()
    before = run(model, feeds())
    assert keep_last_token(model.graph) == 6
    assert chosen(model) == ["seen", "normed"]
    linear = [node for node in model.graph if node.op_type == "Linear"]
    assert [str(node.outputs[0].shape) for node in linear] == ["[batch,1,4]"] * 2
    for found, expected in zip(run(model, feeds()), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        pytest.param({"chosen": 0}, ["normed"], id="the-first-token"),
        pytest.param({"other": ", float[batch,step,4] total"}, ["normed"], id="all-are-an-output"),
        pytest.param({"axis": 1}, ["normed"], id="a-norm-over-tokens"),
        pytest.param(
            {"behind": "sums = ReduceSum(narrow, one)\n  total = Add(narrow, sums)"},
            ["normed"],
            id="another-reads-all-tokens",
        ),
    ],
)
def test_a_choice_stays_where_other_tokens_count(options: Any, kept: list[str]) -> None:
    model = layer(**options)
    assert keep_last_token(model.graph) == 0
    assert chosen(model) == kept


def test_two_values_from_outside_are_both_cut() -> None:
    model = layer(behind="total = Add(x, narrow)")
    before = run(model, feeds())
    assert keep_last_token(model.graph) == 6
    assert sorted(chosen(model)) == ["normed", "seen", "x"]
    np.testing.assert_allclose(run(model, feeds())[0], before[0], rtol=1e-5, atol=1e-6)
