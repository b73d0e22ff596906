"""Our kernels through onnxruntime and alone, against numpy in float64."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.kernels import (
    KERNELS,
    dequantize,
    laned,
    linear_blocks,
    linear_panels,
    near,
    panelled,
    with_kernels,
)
from vlmc.backends.onnxruntime import native

STATUS = Path("/proc/self/status")
_IN_BLOCKS = {"LinearBlockPanels", "BlockRows"}
ROOT = "session.model_external_initializers_file_folder_path"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def channels(rng, k, n):
    return {
        "w": panelled(rng.integers(-127, 128, (n, k)).astype(np.int8)),
        "scales": rng.uniform(0.001, 0.1, n).astype(np.float32),
        "bias": rng.standard_normal(n).astype(np.float32),
    }


def blocks(rng, k, n, bits, block):
    count = -(-k // block)
    parts = {
        "w": rng.integers(0, 256, (n, count, block * bits // 8)).astype(np.uint8),
        "scales": rng.uniform(0.001, 0.1, (n, count)).astype(np.float16),
        "bias": rng.standard_normal(n).astype(np.float32),
    }
    if bits == 4:
        parts["zero_points"] = rng.integers(0, 256, (n, (count + 1) // 2)).astype(np.uint8)
    return parts


def program(op, inputs, parts, shape, external=None, **attributes):
    """One node with x as input; weights beside it in the folder ``external``, or inside."""
    node = helper.make_node(op, inputs, ["y"], domain=native.DOMAIN, **attributes)
    # Its output is not the graph's: what is known of y's shape was inferred.
    after = helper.make_node("Identity", ["y"], ["z"])
    initializers = []
    for name in dict.fromkeys(inputs[1:]):
        if not name:
            continue
        part = laned(parts[name]) if op in _IN_BLOCKS and name != "bias" else parts[name]
        tensor = numpy_helper.from_array(part, name)
        if external:
            (external / name).write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=name)
        initializers.append(tensor)
    graph = helper.make_graph(
        [node, after],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(native.DOMAIN, native.INTERFACE)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def opened(model: onnx.ModelProto, folder=None, threads=2, there=None):
    """A session; ``there``: threads it has, where they are others than it is told of."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = there or threads
    options.log_severity_level = 4
    options.add_session_config_entry(native.THREADS, str(threads))
    if folder:
        options.add_session_config_entry(ROOT, str(folder))
    options.register_custom_ops_library(str(KERNELS))
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(1,), (5,), (2, 3), (0,), (2, 0), (1, 1, 1)])
def test_linear_panels(rng, tmp_path, lead, bias, external, threads):
    parts = channels(rng, 96, 80)
    inputs = ["x", "w", "scales", "bias"][: 4 if bias else 3]
    folder = tmp_path if external else None
    shape = [f"d{i}" for i in range(len(lead))] + [96]
    model = program("LinearPanels", inputs, parts, shape, folder, K=96)
    x = rng.standard_normal((*lead, 96)).astype(np.float32)
    [y] = opened(model, folder, threads).run(None, {"x": x})
    near(y, *linear_panels(x, parts["w"], parts["scales"], parts["bias"] if bias else None))


@with_kernels
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(1,), (2, 3), (3, 5), (0,)])
def test_linear_blocks(rng, tmp_path, lead, bias, bits, external):
    parts = blocks(rng, 96, 40, bits, 32)  # three blocks: half a byte of zero points is unused
    inputs = ["x", "w", "scales", "zero_points" if bits == 4 else "", *(["bias"] if bias else [])]
    folder = tmp_path if external else None
    shape = [f"d{i}" for i in range(len(lead))] + [96]
    settings = {"K": 96, "N": 40, "bits": bits, "block_size": 32}
    model = program("LinearBlockPanels", inputs, parts, shape, folder, **settings)
    x = rng.standard_normal((*lead, 96)).astype(np.float32)
    [y] = opened(model, folder).run(None, {"x": x})
    zero_points, added = parts.get("zero_points"), parts["bias"] if bias else None
    near(y, *linear_blocks(x, parts["w"], parts["scales"], zero_points, bits, added))


@with_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "block"), [(96, 32), (100, 32), (7, 16), (513, 128)])
def test_block_rows(rng, k, block, bits):
    parts = blocks(rng, k, 40, bits, block)
    parts["scales"][3] *= -1
    inputs = ["x", "w", "scales", *(["zero_points"] if bits == 4 else [])]
    settings = {"K": k, "N": 40, "bits": bits, "block_size": block}
    model = program("BlockRows", inputs, parts, ["B", "S"], **settings)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    table = dequantize(
        parts["w"], parts["scales"].astype(np.float64), parts.get("zero_points"), bits
    )
    session = opened(model)
    for ids in (rng.integers(-40, 40, (3, 17)), np.array([[39]]), np.zeros((2, 0), np.int64)):
        [rows] = session.run(None, {"x": ids})
        np.testing.assert_array_equal(rows, table[ids, :k].astype(np.float32))
    for bad in (40, -41):
        with pytest.raises(state.InvalidArgument, match=f"id {bad} is not of a table of 40 rows"):
            session.run(None, {"x": np.array([[3, bad]])})


@with_kernels
@pytest.mark.parametrize(
    ("shape", "inferred"),
    [
        (["B", "S", 64], ["B", "S", 48]),
        ([3, "S", 64], [3, "S", 48]),
        ([7, 64], [7, 48]),
        (["B", None], None),
        ([None, 64], None),
    ],
)
def test_the_shape_of_y_is_inferred(rng, shape, inferred):
    parts = channels(rng, 64, 48)
    model = program("LinearPanels", ["x", "w", "scales"], parts, shape, K=64)
    [y] = opened(model).get_outputs()
    assert y.type == "tensor(float)"
    # None: K is fixed by w alone, or y's rows have no name and none is made up.
    assert y.shape == (inferred or ([*shape[:-1], 48] if shape[0] else []))


@with_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (2, 63)}, r"x is \[2, 63\], the weights are for 64 numbers"),
        ({"scales": (65,)}, r"w is \[1, 16, 64, 4\], not \[2, 16, 64, 4\]"),
        ({"bias": (1,)}, r"bias is \[1\], not \[48\]"),
        ({"w": (64, 48)}, r"w is \[64, 48\], not \[1, 16, 64, 4\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(rng, change, message):
    parts = channels(rng, 64, 48)
    for name, shape in change.items():
        if name in parts:
            parts[name] = np.ones(shape, parts[name].dtype)
    model = program("LinearPanels", ["x", "w", "scales", "bias"], parts, ["M", "K"], K=64)
    session = opened(model)
    with pytest.raises(state.InvalidArgument, match=message):
        session.run(None, {"x": np.ones(change.get("x", (2, 64)), np.float32)})


@with_kernels
@pytest.mark.parametrize(
    "change",
    [{"bits": 3}, {"block_size": 0}, {"block_size": 48}, {"K": -64}, {"K": None}, {"N": None}],
)
def test_attributes_that_make_no_sense_are_refused(rng, change):
    settings = {"K": 64, "N": 48, "bits": 4, "block_size": 32} | change
    given = {name: value for name, value in settings.items() if value is not None}
    model = program(
        "LinearBlockPanels", ["x", "w", "scales"], blocks(rng, 64, 48, 4, 32), ["M", 64], **given
    )
    with pytest.raises(state.RuntimeException, match=r"blocks have 4 or 8 bits|attribute"):
        opened(model)


@with_kernels
def test_a_node_inside_a_branch_reads_the_weights_outside(rng):
    parts = blocks(rng, 64, 48, 4, 32)
    settings = {"K": 64, "N": 48, "bits": 4, "block_size": 32}
    inputs = ["x", "w", "scales", "zero_points", "bias"]
    model = program("LinearBlockPanels", inputs, parts, ["M", 64], **settings)
    graph = model.graph
    inner = helper.make_graph(list(graph.node), "inner", [], list(graph.output))
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])],
        "other",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    del graph.node[:]
    graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=other))
    graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    x = rng.standard_normal((3, 64)).astype(np.float32)
    session = opened(model)
    [y] = session.run(None, {"x": x, "yes": np.array(True)})
    near(y, *linear_blocks(x, *map(parts.get, ("w", "scales", "zero_points")), 4, parts["bias"]))
    [y] = session.run(None, {"x": x, "yes": np.array(False)})
    assert np.array_equal(y, x)


@with_kernels
def test_weights_stay_in_their_file(tmp_path):
    k, n = 2048, 16384  # 32 MiB
    shape = n // 64, k // 4, 64, 4
    parts = {"w": np.full(shape, 3, np.int8), "scales": np.ones(n, np.float32)}
    model = program("LinearPanels", ["x", "w", "scales"], parts, ["M", k], tmp_path, K=k)
    parts.clear()
    before = anonymous_memory()
    session = opened(model, tmp_path)
    [y] = session.run(None, {"x": np.ones((1, k), np.float32)})
    grown = anonymous_memory() - before
    assert y[0, 0] == pytest.approx(3 * k)
    assert grown < k * n // 4
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(tmp_path / "w") in mapped


def anonymous_memory() -> int:
    """Bytes of this process that are no file's."""
    [line] = [x for x in STATUS.read_text(encoding="utf-8").splitlines() if "RssAnon" in x]
    return int(line.split()[1]) * 1024
