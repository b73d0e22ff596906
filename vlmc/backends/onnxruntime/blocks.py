"""Weights in blocks as onnxruntime's operators read them: row by row, whatever their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlmc.backends.onnxruntime.rewrite import Lowering

if TYPE_CHECKING:
    import onnx_ir as ir

BITS = {"int4_block": 4, "int4_panel": 4, "int8_block": 8, "int8_panel": 8}
PANELS = {"int4_panel", "int8_panel"}


def block_rows(low: Lowering, name: str, suffix: str) -> ir.Value:
    """A part of a weight in blocks, its rows first.

    Codes uint8 ``[N, blocks, bytes]``, scales float16 ``[N, blocks]``, zero points uint8
    ``[N, ceil(blocks / 2)]``. Of one in panels, onnxruntime makes it once, as it opens the program.
    """
    part, stored = low.part(name, suffix), low.weights[name]
    if stored.format not in PANELS:
        return part

    def unpacked() -> ir.Value:
        shape = stored.parts[suffix].shape
        panels, width, *inner = shape
        lanes, depth = inner[-2:] if len(inner) == 3 else (inner[0], 1)
        order = [0, 3, 1, 2, 4] if len(shape) == 5 else [0, 2, 1]
        sizes = [panels * lanes, width, *([inner[0] * depth] if len(shape) == 5 else [])]
        turned = low.add("Transpose", [part], {"perm": order})
        rows: ir.Value = low.add("Reshape", [turned, low.constant(np.array(sizes, np.int64))])
        if sizes[0] == stored.rows:
            return rows
        start, axis = (low.constant(np.array([0], np.int64)) for _ in range(2))
        stop = low.constant(np.array([stored.rows], np.int64))
        cut: ir.Value = low.add("Slice", [rows, start, stop, axis])
        return cut

    made: ir.Value = low.shared("rows", part, unpacked)
    return made
