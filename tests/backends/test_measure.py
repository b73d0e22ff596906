"""Kernels timed and compared on this machine, and the choice that follows."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from tests.backends.kernels import KERNELS, with_kernels
from vlmc.backends import BACKENDS, Product
from vlmc.backends.onnxruntime import measure
from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.backends.spec import StoredPart, StoredWeight
from vlmc.errors import VlmcError
from vlmc.passes import compile as compiling
from vlmc.quantizers import QUANTIZERS

FORMATS = {"up": "int8_channel", "down": "int4_panel", "gate": "fp32"}
BACKEND = BACKENDS["onnxruntime"]


@pytest.fixture
def stored(tmp_path):
    """Three weights in one file, and a graph that multiplies by each."""
    return laid(tmp_path, 64)


def laid(tmp_path, rows, columns=96, outlier=1.0):
    rng = np.random.default_rng(3)
    (tmp_path / "weights").mkdir()
    weights, data = {}, b""
    for name, form in FORMATS.items():
        quantizer, parts = QUANTIZERS[form], {}
        weight = rng.standard_normal((rows, columns)).astype(np.float32)
        weight[:, 7] *= outlier
        values = quantizer.quantize(weight, 32)
        for part, array in zip(quantizer.parts(rows, columns, 32), values, strict=True):
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
        weights[name] = StoredWeight(form, rows, columns, 32, parts)
    (tmp_path / "weights/all.bin").write_bytes(data)

    def value(name, *shape):
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    x = value("x", "rows", columns)
    inputs = [value(name, rows, columns) for name in FORMATS]
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


@with_kernels
def test_kernels_that_agree_are_held_alike(stored):
    folder, path, weights = stored
    BACKEND.hold_alike({"language": path}, weights, folder, 1)


@with_kernels
def test_outliers_that_a_second_rounding_feels_are_no_fault(tmp_path):
    folder, path, weights = laid(tmp_path, 64, columns=4096, outlier=100.0)
    BACKEND.hold_alike({"language": path}, weights, folder, 1)


@with_kernels
def test_kernels_that_differ_are_refused(stored, monkeypatch):
    folder, path, weights = stored
    opened = measure._session

    class Off:
        def __init__(self, session):
            self.session = session

        def run(self, *given):
            return [1.1 * array for array in self.session.run(*given)]

    def session(*given, own):
        made = opened(*given, own=own)
        return Off(made) if own else made

    monkeypatch.setattr(measure, "_session", session)
    with pytest.raises(VlmcError, match=r"differ by 1\.0e-01 on 'down' \(int4_panel, 1 rows\)"):
        BACKEND.hold_alike({"language": path}, weights, folder, 1)


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_kernels_are_compared_where_the_check_runs_one_kind_alone(
    stored, tmp_path, monkeypatch, limit
):
    folder, path, weights = stored
    asked = []
    backend = dataclasses.replace(
        BACKEND, hold_alike=lambda *given: asked.append(given), lower=lambda *given: None
    )
    monkeypatch.setattr(compiling, "read_weights", lambda folder: weights)
    monkeypatch.setattr(compiling, "WHOLE_BYTES", limit)
    compiling.compile_programs({"language": path}, folder, backend, "dual", tmp_path)
    assert len(asked) == (limit == 0)


@pytest.mark.parametrize("rows", [511, 512, 700, 1041])
def test_the_first_rows_of_a_large_weight_are_compared(tmp_path, monkeypatch, rows):
    folder, path, weights = laid(tmp_path, rows)
    asked = []

    def hold_alike(graphs, some, *given):
        BACKEND.hold_alike(graphs, some, *given)
        asked.append(some)

    backend = dataclasses.replace(BACKEND, hold_alike=hold_alike, lower=lambda *given: None)
    monkeypatch.setattr(compiling, "read_weights", lambda folder: weights)
    monkeypatch.setattr(compiling, "WHOLE_BYTES", 0)
    compiling.compile_programs({"language": path}, folder, backend, "dual", tmp_path)
    [some] = asked
    assert some["gate"] == weights["gate"]
    for name in ("up", "down"):
        left = rows if rows < 512 else 256 + rows % 256
        assert some[name].rows == left
        whole = stored_values(folder, weights[name])
        assert np.array_equal(stored_values(folder, some[name])[:left], whole[:left])


def stored_values(folder, weight):
    arrays = tuple(
        np.fromfile(
            folder / part.file, part.dtype, count=np.prod(part.shape, dtype=int), offset=part.offset
        ).reshape(part.shape)
        for part in weight.parts.values()
    )
    return QUANTIZERS[weight.format].restore(arrays, weight.columns, weight.block)
