"""Rows looked up in a stored weight, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlmc.backends.onnxruntime.blocks import BITS, block_rows
from vlmc.backends.onnxruntime.rewrite import Lowering

if TYPE_CHECKING:
    import onnx_ir as ir


def gather_rows(low: Lowering, name: str, ids: ir.Value) -> ir.Value:
    """Rows of a stored weight as float32.

    Args:
        low: The graph.
        name: The weight.
        ids: int64 [A, B].

    Returns:
        [A, B, columns].
    """
    import onnx_ir as ir

    stored = low.weights[name]
    to_float = {"to": int(ir.DataType.FLOAT)}
    bits = BITS.get(stored.format)
    table = block_rows(low, name, "") if bits else low.part(name, "")
    rows: ir.Value = low.add("Gather", [table, ids])
    if stored.format == "fp16":
        rows = low.add("Cast", [rows], to_float)
    elif bits:
        scales = low.add("Gather", [block_rows(low, name, ".scales"), ids])
        scales = low.add("Cast", [scales], to_float)
        last = low.constant(np.array([-1], np.int64))
        if bits == 4:
            rows = _nibbles(low, rows, [0, 0, 0, -1])
            zeros = low.add("Gather", [block_rows(low, name, ".zero_points"), ids])
            zeros = _nibbles(low, zeros, [0, 0, -1])
            # An odd number of blocks leaves half a byte over.
            blocks = low.constant(np.array([stored.parts[".scales"].shape[1]], np.int64))
            start, axis = low.constant(np.array([0], np.int64)), last
            zeros = low.add("Slice", [zeros, start, blocks, axis])
            zero = low.add("Unsqueeze", [low.add("Cast", [zeros], to_float), last])
        else:
            zero = low.constant(np.float32(128))
        values = low.add("Sub", [low.add("Cast", [rows], to_float), zero])
        values = low.add("Mul", [values, low.add("Unsqueeze", [scales, last])])
        rows = low.add("Reshape", [values, low.constant(np.array([0, 0, -1], np.int64))])
        if stored.columns % stored.block:
            start = low.constant(np.array([0], np.int64))
            stop = low.constant(np.array([stored.columns], np.int64))
            rows = low.add("Slice", [rows, start, stop, last])
    return rows


def _nibbles(low: Lowering, packed: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Bytes [..., n] -> their halves, low first, reshaped to ``shape`` [..., 2n]."""
    last = low.constant(np.array([-1], np.int64))
    mask = low.constant(np.uint8(15))
    four = low.constant(np.uint8(4))
    first = low.add("Unsqueeze", [low.add("BitwiseAnd", [packed, mask]), last])
    second = low.add("BitShift", [packed, four], {"direction": "RIGHT"})
    pairs = low.add("Concat", [first, low.add("Unsqueeze", [second, last])], {"axis": -1})
    halves: ir.Value = low.add("Reshape", [pairs, low.constant(np.array(shape, np.int64))])
    return halves
