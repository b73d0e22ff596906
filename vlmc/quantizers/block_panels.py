"""Blocks in the order our kernels multiply them: panels of 16 channels, a lane of a vector each."""

import math
from dataclasses import replace

import numpy as np

from vlmc.quantizers import compiled, int4_block, int8_block
from vlmc.quantizers.spec import Array, Part, Quantizer

LANES = 16
DEPTH = 4  # bytes of a lane


def _panelled(name: str, by_rows: Quantizer) -> Quantizer:
    """The format whose bytes are those of a format in blocks, another way round.

    Codes uint8 ``[ceil(N / 16), blocks, bytes / 4, 16, 4]``: channel ``16 p + c`` has byte
    ``4 g + i`` of its block b at ``[p, b, g, c, i]``. What it has one of for a block, or for two,
    is ``[ceil(N / 16), ..., 16]``. Behind the last channel are zeros.
    """

    def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
        return tuple(_part(part) for part in by_rows.parts(rows, columns, block))

    def quantize(weight: Array, block: int) -> tuple[Array, ...]:
        return tuple(_pack(array) for array in by_rows.quantize(weight, block))

    def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
        return by_rows.restore(tuple(_unpack(array) for array in stored), columns, block)

    measured = compiled.blocks(parts)
    rounded = compiled.rounded(parts) if by_rows.bits == 4 else None
    return Quantizer(name, by_rows.bits, parts, quantize, restore, measured, rounded)


def _part(part: Part) -> Part:
    rows, count, *size = part.shape
    inner = (size[0] // DEPTH, LANES, DEPTH) if size else (LANES,)
    return replace(part, shape=(math.ceil(rows / LANES), count, *inner), rows_each=LANES)


def _pack(array: Array) -> Array:
    """``[n, blocks, bytes]`` or ``[n, columns]`` -> panels."""
    panels = math.ceil(len(array) / LANES)
    room = np.zeros((panels * LANES, *array.shape[1:]), array.dtype)
    room[: len(array)] = array
    lanes = room.reshape(panels, LANES, *array.shape[1:])
    if array.ndim == 3:
        lanes = lanes.reshape(*lanes.shape[:3], -1, DEPTH)
    return np.ascontiguousarray(np.moveaxis(lanes, 1, 3 if array.ndim == 3 else 2))


def _unpack(array: Array) -> Array:
    """The inverse, with the rows that fill up the last panel."""
    lanes = np.moveaxis(array, 3 if array.ndim == 5 else 2, 1)
    return lanes.reshape(len(array) * LANES, array.shape[1], *([-1] if array.ndim == 5 else []))


INT4 = _panelled("int4_panel", int4_block.QUANTIZER)
INT8 = _panelled("int8_panel", int8_block.QUANTIZER)
