import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vlmc
from vlmc.backends.onnxruntime.settings import session_options
from vlmc.errors import VlmcError
from vlmc.quantizers import QUANTIZERS

ROWS = 24
SHAPES = [(ROWS, 64), (ROWS, 100), (1, 16), (ROWS, 33), (ROWS, 896)]
# Relative Frobenius error on Gaussian weights, blocks of 32: what each format may cost.
LIMITS = {
    "fp32": 0.0,
    "fp16": 4e-4,
    "int8_channel": 0.012,
    **dict.fromkeys(("int8_block", "int8_panel"), 0.006),
    **dict.fromkeys(("int4_block", "int4_panel"), 0.09),
}


def gaussian(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * 0.02


def relative(wrong, right):
    return float(np.linalg.norm(wrong - right) / np.linalg.norm(right))


def run(nodes, feeds, weights, outputs=("y",)):
    """Runs a graph of a few nodes in onnxruntime; ``weights`` are initializers."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_stored_arrays_are_what_parts_say(name, rows, columns):
    quantizer = QUANTIZERS[name]
    assert quantizer.name == name
    stored = quantizer.quantize(gaussian(rows, columns), 32)
    parts = quantizer.parts(rows, columns, 32)
    assert [(part.dtype, part.shape) for part in parts] == [
        (array.dtype.name, array.shape) for array in stored
    ]
    assert parts[0].suffix == ""
    assert len({part.suffix for part in parts}) == len(parts)
    assert all(part.shape[part.row_axis] == -(-rows // part.rows_each) for part in parts)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_restore_comes_back_within_the_formats_error(name, rows, columns):
    weight = gaussian(rows, columns)
    quantizer = QUANTIZERS[name]
    restored = quantizer.restore(quantizer.quantize(weight, 32), columns, 32)
    each = min(part.rows_each for part in quantizer.parts(rows, columns, 32))
    assert restored.shape == (-(-rows // each) * each, columns)
    assert restored.dtype == np.float32
    assert relative(restored[:rows], weight) <= LIMITS[name]
    assert not restored[rows:].any()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_rows_are_independent(name):
    quantizer = QUANTIZERS[name]
    cut = max(7, *(part.rows_each for part in quantizer.parts(1, 1, 32)))
    rows = cut + ROWS
    weight = gaussian(rows, 100)
    whole = quantizer.quantize(weight, 32)
    split = [quantizer.quantize(weight[:cut], 32), quantizer.quantize(weight[cut:], 32)]
    for part, array, *pieces in zip(quantizer.parts(rows, 100, 32), whole, *split, strict=True):
        np.testing.assert_array_equal(np.concatenate(pieces, axis=part.row_axis), array)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, -0.5, 3.0])
def test_constant_rows_come_back(name, value):
    weight = np.full((3, 64), value, np.float32)
    weight[1] = 0
    quantizer = QUANTIZERS[name]
    stored = quantizer.quantize(weight, 32)
    restored = quantizer.restore(stored, 64, 32)[:3]
    scales = dict(zip((part.suffix for part in quantizer.parts(3, 64, 32)), stored, strict=True))
    # Half a step of a scale's last digit, where that is of float16.
    digits = 2**-11 if scales.get(".scales", weight).dtype == np.float16 else 1e-6
    np.testing.assert_allclose(restored, weight, rtol=digits, atol=1e-37 if "int" in name else 1e-7)


@pytest.mark.parametrize("name", ["int8_channel", "int8_block", "int4_block"])
def test_largest_values_survive_an_outlier_elsewhere(name):
    weight = gaussian(4, 64)
    weight[0, 0], weight[2, 40] = 5.0, -7.0
    quantizer = QUANTIZERS[name]
    restored = quantizer.restore(quantizer.quantize(weight, 32), 64, 32)
    assert restored[0, 0] == pytest.approx(5.0, rel=0.05)
    assert restored[2, 40] == pytest.approx(-7.0, rel=0.05)
    assert relative(restored[3], weight[3]) <= LIMITS[name]


def test_fp16_refuses_what_does_not_fit():
    weight = gaussian(4, 8)
    weight[2, 3] = -65520.0  # rounds to infinity
    with pytest.raises(VlmcError, match="65520 does not fit float16"):
        QUANTIZERS["fp16"].quantize(weight, 32)
    weight[2, 3] = 65504.0
    assert QUANTIZERS["fp16"].quantize(weight, 32)[0][2, 3] == 65504


@pytest.mark.parametrize("name", ["int8_block", "int4_block"])
@pytest.mark.parametrize("block", [0, 8, 48, -32])
def test_blocks_the_kernels_do_not_take_are_refused(name, block):
    with pytest.raises(ValueError, match="power of two"):
        QUANTIZERS[name].parts(4, 64, block)


def test_int4_beats_symmetric_codes_on_outliers():
    weight = gaussian(64, 256)
    weight[:, [3, 40, 77, 200]] *= 8
    blocks = weight.reshape(64, 8, 32)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(2, keepdims=True), 2)
    scale = peak / -8
    symmetric = (np.clip(np.rint(blocks / scale), -8, 7) * scale).reshape(64, 256)
    quantizer = QUANTIZERS["int4_block"]
    ours = quantizer.restore(quantizer.quantize(weight, 32), 256, 32)
    assert relative(ours, weight) < 0.85 * relative(symmetric, weight)


@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("columns", [64, 100, 896])
@pytest.mark.parametrize(("name", "bits"), [("int8_block", 8), ("int4_block", 4)])
@pytest.mark.parametrize(("accuracy", "tolerance"), [(1, 1e-6), (4, 0.01)])
def test_matmulnbits_multiplies_with_the_stored_blocks(
    name, bits, columns, block, accuracy, tolerance
):
    from onnx import helper

    quantizer = QUANTIZERS[name]
    stored = quantizer.quantize(gaussian(ROWS, columns), block)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "scales", "zero_points"][: 1 + len(stored)],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=ROWS,
        bits=bits,
        block_size=block,
        accuracy_level=accuracy,
    )
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    codes, scales, *zeros = stored
    parts = (codes, scales.astype(np.float32), *zeros)
    weights = dict(zip(("b", "scales", "zero_points"), parts, strict=False))
    got = run([node], {"x": x}, weights)
    assert relative(got, x @ quantizer.restore(stored, columns, block).T) < tolerance


@pytest.mark.parametrize("columns", [64, 100, 896])
def test_matmulintegertofloat_multiplies_with_the_stored_channels(columns):
    from onnx import helper

    quantizer = QUANTIZERS["int8_channel"]
    stored = quantizer.quantize(gaussian(ROWS, columns), 0)
    x = np.random.default_rng(1).standard_normal((5, columns)).astype(np.float32)
    step = np.abs(x).max(axis=1, keepdims=True) / 127  # one scale per token, taken out first
    nodes = [
        helper.make_node("Div", ["x", "step"], ["scaled"]),
        helper.make_node("QuantizeLinear", ["scaled", "one", "middle"], ["codes"]),
        helper.make_node(
            "MatMulIntegerToFloat",
            ["codes", "b", "one", "scales", "middle"],
            ["product"],
            domain="com.microsoft",
        ),
        helper.make_node("Mul", ["product", "step"], ["y"]),
    ]
    weights = {
        "b": stored[0].transpose(1, 3, 0, 2).reshape(-1, 64)[:columns, :ROWS],
        "scales": stored[1],
        "one": np.float32(1).reshape(()),
        "middle": np.uint8(128).reshape(()),
    }
    got = run(nodes, {"x": x, "step": step}, weights)
    activations = np.rint(x / step) * step
    expected = activations @ quantizer.restore(stored, columns, 0).T
    assert relative(got, expected) < 1e-5
    assert relative(got, x @ gaussian(ROWS, columns).T) < 0.02


@pytest.mark.parametrize("columns", [64, 100])
def test_gather_reads_an_embedding_from_the_stored_blocks(columns):
    from onnx import helper

    quantizer = QUANTIZERS["int8_block"]
    codes, scales = quantizer.quantize(gaussian(ROWS, columns), 32)
    ids = np.array([[3, 0, 23]], np.int64)
    nodes = [
        helper.make_node("Gather", ["codes", "ids"], ["rows"]),
        helper.make_node("Gather", ["scales", "ids"], ["halves"]),
        helper.make_node("Cast", ["halves"], ["steps"], to=1),
        helper.make_node("Cast", ["rows"], ["values"], to=1),
        helper.make_node("Sub", ["values", "middle"], ["centred"]),
        helper.make_node("Unsqueeze", ["steps", "last"], ["wide"]),
        helper.make_node("Mul", ["centred", "wide"], ["y"]),
    ]
    weights = {
        "codes": codes,
        "scales": scales,
        "middle": np.float32(128).reshape(()),
        "last": np.array([3], np.int64),
    }
    got = run(nodes, {"ids": ids}, weights).reshape(1, 3, -1)[:, :, :columns]
    np.testing.assert_array_equal(got, quantizer.restore((codes, scales), columns, 32)[ids])


DIGEST = """
import hashlib
import numpy as np
from vlmc.quantizers import QUANTIZERS
weight = np.random.default_rng(3).integers(-(2**20), 2**20, (64, 900)).astype(np.float32) / 2**22
whole = hashlib.sha256()
for quantizer in QUANTIZERS.values():
    for array in quantizer.quantize(weight, 32):
        whole.update(np.ascontiguousarray(array).tobytes())
print(whole.hexdigest())
"""


def test_bytes_do_not_depend_on_the_machines_vector_units():
    simd = np.show_config(mode="dicts")["SIMD Extensions"]["found"]

    def run_with(disabled):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=Path(vlmc.__file__).parents[1],
            env={"NPY_DISABLE_CPU_FEATURES": " ".join(disabled)} if disabled else {},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert run_with(simd) == run_with([])


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bits_count_the_codes(name):
    quantizer = QUANTIZERS[name]
    main = quantizer.parts(64, 64, 32)[0]
    size = math.prod(main.shape) * np.dtype(main.dtype).itemsize
    assert size * 8 == 64 * 64 * quantizer.bits
