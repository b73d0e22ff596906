"""What simplify leaves as it was."""

from __future__ import annotations

from pathlib import Path

from vlmc.passes.simplify import simplify


def test_free_dimensions_that_are_equal_keep_their_own_names(tmp_path: Path) -> None:
    """As where an image token is one patch: the graph shows that there are as many of either."""
    import onnx
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

    (made,) = onnx.load(out / "vision.onnx").graph.output
    assert made == layers
