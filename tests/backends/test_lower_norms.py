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


def sum_of_two(shapes, *, op="LayerNormalization", axis=-1):
    """A norm of a plain sum, and a product of it."""
    floats = ir.TensorType(ir.DataType.FLOAT)
    given = {"x": shapes[0], "skip": shapes[1], "gamma": [4], "beta": [4], "w": [4], "scales": [4]}
    x, skip, gamma, beta, w, scales = (
        ir.Value(name=name, type=floats, shape=ir.Shape(shape) if shape else None)
        for name, shape in given.items()
    )
    total = ir.Node("", "Add", [x, skip], name="sum")
    weights = [gamma, beta] if op == "LayerNormalization" else [gamma]
    attributes = ir.convenience.convert_attributes({"epsilon": 1e-3, "axis": axis})
    norm = ir.Node("", op, [total.outputs[0], *weights], attributes)
    product = ir.Node(DOMAIN, "LinearPanels", [norm.outputs[0], w, scales])
    late = ir.Node("", "Neg", [total.outputs[0]])
    product.outputs[0].name, late.outputs[0].name = "y", "late"
    nodes = [total, norm, late, product]
    outputs = [product.outputs[0], late.outputs[0]]
    return ir.Graph([x, skip, gamma, beta, w, scales], outputs, nodes=nodes)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("axis", [-1, 2])
def test_a_norm_of_a_plain_sum(op, axis):
    graph = sum_of_two([[1, "S", 4]] * 2, op=op, axis=axis)
    merge_norms(Lowering(graph, {}))
    assert [node.op_type for node in graph] == ["NormedLinearPanels", "Neg"]
    merged = graph[0]
    beta = "beta" if op == "LayerNormalization" else None
    names = [value.name if value is not None else None for value in merged.inputs]
    assert names == ["x", "skip", "gamma", beta, "w", "scales"]
    assert merged.attributes["centered"].value == (op == "LayerNormalization")
    assert merged.attributes["epsilon"].value == pytest.approx(1e-3)
    assert [value.name for value in graph.outputs] == ["y", "late"]
    assert graph[1].inputs[0] is merged.outputs[1]


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        ([[2, 8, 4], [1, 8, 4]], -1),  # positions that are added to every row
        ([["B", 8, 4], ["S", 8, 4]], -1),
        ([["B", 8, 4], None], -1),
        ([[None, 8, 4]] * 2, -1),
        ([[2, 8, 4]] * 2, 1),
    ],
)
def test_a_sum_that_may_not_be_of_one_shape_stays(shapes, axis):
    graph = sum_of_two(shapes, axis=axis)
    merge_norms(Lowering(graph, {}))
    assert {node.op_type for node in graph} == {"Add", "LayerNormalization", "LinearPanels", "Neg"}


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
