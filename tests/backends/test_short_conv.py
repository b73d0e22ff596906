"""Short convolutions as onnxruntime computes them, against numpy's."""

from __future__ import annotations

import numpy as np
import pytest

from vlmc.backends.onnxruntime.lower import lower_graph

CHANNELS = 5


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("size", [1, 3])
def test_one_token_and_many_are_weighed_alike(size: int, biased: bool) -> None:
    import onnx_ir as ir
    import onnxruntime as ort

    def value(name: str, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))

    inputs = [value("x", "B", CHANNELS, "L"), value("weight", CHANNELS, size)]
    inputs += [value("bias", CHANNELS)] if biased else []
    output = value("out", "B", CHANNELS, "N")
    sizes = ir.convenience.convert_attributes({"kernel_size": size, "channels": CHANNELS})
    node = ir.Node("vlmc", "ShortConv", inputs, sizes, outputs=[output])
    imports = {"": 23, "vlmc": 1}
    graph = ir.Graph(inputs, [output], nodes=[node], name="conv", opset_imports=imports)
    model = ir.Model(graph, ir_version=10)
    lower_graph(model, {})
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    random = np.random.default_rng(size)
    given = {
        "weight": random.normal(size=(CHANNELS, size)).astype(np.float32),
        "bias": random.normal(size=CHANNELS).astype(np.float32),
    }
    for length in (size, size + 1, size + 6):
        x = random.normal(size=(2, CHANNELS, length)).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=2)
        wanted = np.einsum("bcnk,ck->bcn", windows, given["weight"])
        wanted = wanted + given["bias"][:, None] * biased
        feeds = {"x": x, **{name: given[name] for name in ("weight", "bias")[: 1 + biased]}}
        [found] = session.run(None, feeds)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
