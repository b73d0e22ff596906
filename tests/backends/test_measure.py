"""Kernels timed on this machine, and the choice that follows."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.backends.kernels import KERNELS
from vlmc.backends import BACKENDS, Product
from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.backends.spec import StoredPart, StoredWeight
from vlmc.quantizers import QUANTIZERS

FORMATS = {"up": "int8_channel", "down": "int4_panel", "gate": "fp32"}
BACKEND = BACKENDS["onnxruntime"]


@pytest.fixture
def stored(tmp_path):
    """Three weights in one file, and a graph that multiplies by each."""
    rng = np.random.default_rng(3)
    (tmp_path / "weights").mkdir()
    weights, data = {}, b""
    for name, form in FORMATS.items():
        quantizer, parts = QUANTIZERS[form], {}
        values = quantizer.quantize(rng.standard_normal((64, 96)).astype(np.float32), 32)
        for part, array in zip(quantizer.parts(64, 96, 32), values, strict=True):
            data += b"\0" * (-len(data) % 64)
            content = np.ascontiguousarray(array)
            parts[part.suffix] = StoredPart(
                name + part.suffix,
                "weights/all.bin",
                len(data),
                content.nbytes,
                str(content.dtype),
                content.shape,
            )
            data += content.tobytes()
        weights[name] = StoredWeight(form, 64, 96, 32, parts)
    (tmp_path / "weights/all.bin").write_bytes(data)

    def value(name, *shape):
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    x = value("x", "rows", 96)
    inputs = [value(name, 64, 96) for name in FORMATS]
    nodes = [ir.Node("vlmc", "Linear", [x, weight], name=str(weight.name)) for weight in inputs]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_y", x.type
    graph = ir.Graph(
        [x, *inputs],
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        opset_imports={"": 23, "vlmc": 1},
        name="language",
    )
    path = tmp_path / "language.onnx"
    ir.save(ir.Model(graph, ir_version=11), path)
    return tmp_path, path, weights


def test_every_shape_of_product_is_timed_by_every_kernel(stored):
    folder, path, weights = stored
    found = BACKEND.measure({"language": path}, weights, folder, (1, 9), 1)
    if KERNELS is None:
        assert found == []
        return
    assert [row["format"] for row in found] == sorted(FORMATS.values())
    for row in found:
        assert (row["inputs"], row["outputs"], row["weights"]) == (96, 64, 1)
        assert row["seconds"].keys() == {"onnxruntime", "vlmc"}
        for seconds in row["seconds"].values():
            assert seconds.keys() == {"1", "9"}
            assert all(0 < value < 10 for value in seconds.values())
        ratio = np.prod(
            [row["seconds"]["vlmc"][m] / row["seconds"]["onnxruntime"][m] for m in "19"]
        )
        if not 0.95 < ratio < 1.05:  # figures are rounded
            assert row["kernel"] == ("vlmc" if ratio < 1 else "onnxruntime")


def test_the_slower_kernel_is_not_used(stored):
    _, path, weights = stored
    row = {"format": "int8_channel", "inputs": 96, "outputs": 64, "kernel": "onnxruntime"}
    slower = BACKEND.slower([row, {**row, "format": "fp32", "kernel": "vlmc"}])
    assert slower == {Product("int8_channel", 96, 64)}
    model = ir.load(path)
    lower_graph(model, weights, kernels=True, slower=slower)
    used = [node.op_type for node in model.graph if node.domain == "vlmc.kernels"]
    assert sorted(used) == ["LinearBlockPanels", "LinearFloat"]
    assert "MatMulIntegerToFloat" in [node.op_type for node in model.graph]
