"""``vlmc::Linear`` -> onnxruntime's own products, of weights as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlmc.backends.onnxruntime.blocks import BITS, block_rows
from vlmc.backends.onnxruntime.rewrite import Lowering, float_weight, replace

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
_INT8_TOP = 127.0
# Activations of a row of zeros still need a scale.
_SMALLEST = 1e-12
# MatMulNBits: 4 multiplies 8-bit activations, the fast kernels.
_ACCURACY_LEVEL = 4


def linear(low: Lowering, node: ir.Node) -> None:
    """Replaces ``vlmc::Linear`` by the operator for its weight's storage format."""
    x, weight = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None
    assert weight is not None
    name = str(weight.name)
    stored = low.weights[name]
    bias_value = float_weight(low, str(bias.name)) if bias is not None else None
    if stored.format in BITS:
        zeros = ".zero_points"
        inputs = [x, block_rows(low, name, ""), _float_scales(low, name)]
        inputs.append(block_rows(low, name, zeros) if zeros in stored.parts else None)
        if bias_value is not None:
            inputs += [None, bias_value]
        attributes = {
            "K": stored.columns,
            "N": stored.rows,
            "bits": BITS[stored.format],
            "block_size": stored.block,
            "accuracy_level": _ACCURACY_LEVEL,
        }
        out = low.add("MatMulNBits", inputs, attributes, domain=MICROSOFT)
        replace(node, [out])
        return
    if stored.format == "int8_channel":
        codes, scale = low.shared("quantized", x, lambda: _quantize_tokens(low, x))
        out = low.add(
            "MatMulIntegerToFloat",
            [
                codes,
                _columns(low, name),
                low.constant(np.float32(1)),
                low.part(name, ".scales"),
                low.constant(np.uint8(128)),
            ],
            domain=MICROSOFT,
        )
        out = low.add("Mul", [out, scale])
    else:
        matrix = float_weight(low, name)
        out = low.add("FusedMatMul", [x, matrix], {"transB": 1}, domain=MICROSOFT)
    if bias_value is not None:
        out = low.add("Add", [out, bias_value])
    replace(node, [out])


def _float_scales(low: Lowering, name: str) -> ir.Value:
    import onnx_ir as ir

    scales = block_rows(low, name, ".scales")
    to_float = {"to": int(ir.DataType.FLOAT)}
    made: ir.Value = low.shared("float", scales, lambda: low.add("Cast", [scales], to_float))
    return made


def _columns(low: Lowering, name: str) -> ir.Value:
    """int8 [K, N] of a weight in panels; onnxruntime makes it once, as it opens the program.

    Each product has its own: where onnxruntime makes matrices unsigned, as on x86 without VNNI, it
    does so product by product, and refuses one of two.
    """
    codes, stored = low.part(name, "", own=True), low.weights[name]
    panels, groups, width, depth = stored.parts[""].shape
    # Two steps would take a sixth of the time, and twice the memory.
    turned = low.add("Transpose", [codes], {"perm": [1, 3, 0, 2]})
    whole = low.constant(np.array([groups * depth, panels * width], np.int64))
    matrix: ir.Value = low.add("Reshape", [turned, whole])
    if (groups * depth, panels * width) == (stored.columns, stored.rows):
        return matrix
    ends = np.array([stored.columns, stored.rows], np.int64)
    start = low.constant(np.zeros(2, np.int64))
    cut: ir.Value = low.add("Slice", [matrix, start, low.constant(ends)])
    return cut


def _quantize_tokens(low: Lowering, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Codes uint8 around 128, and one scale per token [..., 1]."""
    largest = low.add("ReduceMax", [low.add("Abs", [x]), low.constant(np.array([-1], np.int64))])
    # Added, not a maximum: the same guard for rows of zeros, many times faster on few tokens.
    guarded = low.add("Add", [largest, low.constant(np.float32(_SMALLEST))])
    scale = low.add("Mul", [guarded, low.constant(np.float32(1 / _INT8_TOP))])
    codes = low.add(
        "QuantizeLinear",
        [
            low.add("Div", [x, scale]),
            low.constant(np.float32(1)),
            low.constant(np.uint8(128)),
        ],
    )
    return codes, scale
