"""Which norms become part of the products after them."""

from collections import Counter

import onnx_ir as ir
import pytest

from vlmc.backends.onnxruntime.lower_norms import merge_norms
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering


def graph(*, outputs=("y",), readers=1):
    """A norm of a sum, products of it, and a reader of the sum that stands before them."""
    floats, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, "S", 4])
    names = ("x", "skip", "gamma", "w", "scales")
    x, skip, gamma, w, scales = (ir.Value(name=n, type=floats, shape=shape) for n in names)
    norm = ir.Node(
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
        [x, skip, gamma],
        ir.convenience.convert_attributes({"epsilon": 1e-5}),
        num_outputs=4,
    )
    late = ir.Node("", "Neg", [norm.outputs[3]])
    products = [
        ir.Node(DOMAIN, "LinearPanels", [norm.outputs[0], w, scales]) for _ in range(readers)
    ]
    values = {"y": products[0].outputs[0], "late": late.outputs[0], "total": norm.outputs[3]}
    for name, value in values.items():
        value.name = name
    made = [values[name] for name in (*outputs, "late")]
    return ir.Graph([x, skip, gamma, w, scales], made, nodes=[norm, late, *products])


@pytest.mark.parametrize(
    ("given", "merged"),
    [({}, True), ({"outputs": ("y", "total")}, False), ({"readers": 2}, False)],
)
def test_a_norm_that_products_alone_read(given, merged):
    rewritten = graph(**given)
    names = [value.name for value in rewritten.outputs]
    merge_norms(Lowering(rewritten, {}))
    assert [value.name for value in rewritten.outputs] == names
    ops = Counter(node.op_type for node in rewritten)
    assert ops["NormedLinearPanels"] == merged
    assert ops["SkipSimplifiedLayerNormalization"] == (not merged)
    known = {value.name for value in rewritten.inputs}
    for node in rewritten:
        assert known.issuperset(value.name for value in node.inputs if value is not None)
        known |= {value.name for value in node.outputs}
