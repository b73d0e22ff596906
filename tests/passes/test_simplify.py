"""What simplify leaves as it was."""

from __future__ import annotations

from pathlib import Path

from vlmc.passes.simplify import simplify


def test_free_dimensions_that_are_equal_keep_their_own_names(tmp_path: Path) -> None:
    """As where an image token is one patch: the graph shows that there are as many of either."""
    import onnx
    import onnx_ir as ir
    from onnx import TensorProto, helper

    rows = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["patches", 4])
    layers = helper.make_tensor_value_info("layers", TensorProto.FLOAT, ["tokens", 1, 4])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Constant", [], ["axis"], value=axis),
        helper.make_node("Unsqueeze", ["pixels", "axis"], ["layer"]),
        helper.make_node("Concat", ["layer"], ["layers"], axis=1),
    ]
    graph = helper.make_graph(nodes, "vision", [rows], [layers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "in.onnx")
    out = tmp_path / "out"
    out.mkdir()

    simplify({"vision": tmp_path / "in.onnx"}, out)

    (made,) = ir.load(out / "vision.onnx").graph.outputs
    assert made.name == "layers"
    assert made.shape == ir.Shape(["tokens", 1, 4])


def test_terms_of_a_normed_sum_keep_their_shapes(tmp_path: Path) -> None:
    """And no other value does: names of sizes that were inferred tell a backend nothing."""
    import onnx
    import onnx_ir as ir
    from onnx import TensorProto, helper

    def value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Exp", ["x"], ["risen"]),
        helper.make_node("Add", ["x", "risen"], ["total"]),
        helper.make_node("LayerNormalization", ["total", "gamma"], ["normed"]),
        helper.make_node("Tanh", ["normed"], ["bent"]),
        helper.make_node("Add", ["bent", "total"], ["y"]),
    ]
    shape: list[int | str] = [1, "tokens", 4]
    inputs = [value("x", shape), value("gamma", [4])]
    graph = helper.make_graph(nodes, "vision", inputs, [value("y", shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "in.onnx")
    (tmp_path / "out").mkdir()

    simplify({"vision": tmp_path / "in.onnx"}, tmp_path / "out")

    made = {
        one.name: one.shape
        for node in ir.load(tmp_path / "out/vision.onnx").graph
        for one in node.outputs
    }
    assert made["risen"] == ir.Shape([1, "tokens", 4])
    assert made["total"] is None
    assert made["bent"] is None
