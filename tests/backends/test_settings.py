"""Sessions are opened so that onnxruntime's products of bytes are right on every CPU."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.backends.test_measure import laid
from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.backends.onnxruntime.settings import session_options

PROVIDERS = ["CPUExecutionProvider"]


def test_no_sum_of_two_products_saturates():
    """On x86 without VNNI, it would: 2 * 255 * 127 is more than 16 bits hold."""
    settings = session_options(1)
    assert settings.get_session_config_entry("session.x64quantprecision") == "1"
    node = helper.make_node("MatMulInteger", ["a", "b", "a_zero"], ["y"])
    weights = {"b": np.full((64, 16), 127, np.int8), "a_zero": np.uint8(128)}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=PROVIDERS)
    for rows in (1, 9):
        [found] = session.run(None, {"a": np.full((rows, 64), 255, np.uint8)})
        assert np.array_equal(found, np.full((rows, 16), 127 * 127 * 64))


def test_products_that_share_a_weight_read_an_initializer_each(tmp_path):
    """onnxruntime makes weights unsigned there product by product, and refuses one of two."""
    _, _, weights = laid(tmp_path, 64)
    name = next(name for name, stored in weights.items() if stored.format == "int8_channel")
    kind = ir.TensorType(ir.DataType.FLOAT)
    pair = [ir.Value(name=at, shape=ir.Shape(("rows", 96)), type=kind) for at in ("x0", "x1")]
    weight = ir.Value(name=name, shape=ir.Shape((64, 96)), type=kind)
    nodes = [ir.Node("vlmc", "Linear", [x, weight], name=f"product_{x.name}") for x in pair]
    for at, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].type = f"y{at}", kind
    graph = ir.Graph(
        [*pair, weight],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        opset_imports={"": 23, "vlmc": 1},
        name="language",
    )
    model = ir.Model(graph, ir_version=11)
    lower_graph(model, weights, kernels=False)
    places = [
        (tensor.location, tensor.offset)
        for value in model.graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
        and tensor.offset == weights[name].parts[""].offset
    ]
    assert len(places) == 2
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), session_options(1, tmp_path), providers=PROVIDERS
    )
    x = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    first, second = session.run(None, {"x0": x, "x1": x})
    assert np.array_equal(first, second)
    assert np.any(first)
