"""4 bits, a scale and a zero point per block of columns, row by row: for tables that are looked up.

Zero points are stored, because they take a fifth off the error of symmetric codes on weights
with outliers, a twentieth on Gaussian ones, and cost the kernel no time.
"""

import math

import numpy as np

from vlmc.quantizers import compiled
from vlmc.quantizers.blocks import as_stored, count, join, split, usable
from vlmc.quantizers.spec import Array, Part, Quantizer

_TOP = np.float32(15)
# The range to start from, as a share of the block's own: a little clipping pays for finer steps.
_SHARE = np.float32(0.97)
_REFITS = 2


def parts(rows: int, columns: int, block: int) -> tuple[Part, ...]:
    """Codes, scales and zero points as ``MatMulNBits`` takes them, but for the scales' type.

    Codes uint8 ``[N, blocks, block / 2]`` and zero points uint8 ``[N, ceil(blocks / 2)]`` hold
    two values a byte, the first in the low half; scales are float16 ``[N, blocks]``.
    """
    blocks = count(columns, block)
    return (
        Part("", "uint8", (rows, blocks, block // 2)),
        Part(".scales", "float16", (rows, blocks)),
        Part(".zero_points", "uint8", (rows, math.ceil(blocks / 2))),
    )


def quantize(weight: Array, block: int) -> tuple[Array, ...]:
    """float32 ``[n, K]`` -> codes, scales and zero points of these n rows.

    Each block starts from its own range; then twice, the codes are chosen for the scale and the
    scale is refitted to the codes by least squares, which never raises the squared error.
    """
    cut = split(weight, block)
    rows, blocks = cut.shape[:2]
    # A block's elements along the first axis: the blocks side by side fill the vector units.
    values = np.ascontiguousarray(cut.reshape(-1, block).T)
    low = np.minimum(values.min(axis=0), 0) * _SHARE
    high = np.maximum(values.max(axis=0), 0) * _SHARE
    scale = usable((high - low) / _TOP)
    zero = np.clip(np.rint(-low / scale), 0, _TOP)
    codes = np.empty_like(values)
    product = np.empty_like(values)
    for _ in range(_REFITS):
        _round(values, scale, zero, codes)
        along = _fold(np.multiply(values, codes, out=product))
        norm = _fold(np.multiply(codes, codes, out=product))
        scale = usable(np.divide(along, norm, out=scale, where=norm > 0))
    stored = as_stored(scale)
    _round(values, usable(stored.astype(np.float32)), zero, codes)
    codes += zero
    halves = codes.astype(np.uint8)
    packed = halves[0::2] | (halves[1::2] << 4)
    return (
        packed.T.reshape(rows, blocks, block // 2),
        stored.reshape(rows, blocks),
        _pack(zero.astype(np.uint8).reshape(rows, blocks)),
    )


def restore(stored: tuple[Array, ...], columns: int, block: int) -> Array:
    """Codes, scales and zero points -> float32 ``[n, columns]``."""
    packed, scale, zeros = stored
    values = _unpack(packed).astype(np.float32)
    values -= _unpack(zeros)[:, : scale.shape[1], None]
    values *= scale.astype(np.float32)[:, :, None]
    return join(values, columns)


def _fold(values: Array) -> Array:
    """The sum over the first axis, halves onto halves.

    numpy's own order of adding depends on the array's shape; here the codes of a block must not
    depend on how many blocks are at hand.
    """
    while len(values) > 1:
        half = len(values) // 2
        values = values[:half] + values[half:]
    folded: Array = values[0]
    return folded


def _round(values: Array, scale: Array, zero: Array, out: Array) -> None:
    """The nearest codes, zero point left out, that the zero point allows."""
    np.divide(values, scale, out=out)
    np.rint(out, out=out)
    np.clip(out, -zero, _TOP - zero, out=out)


def _pack(values: Array) -> Array:
    """Values below 16 in pairs along the last axis; an odd last one is alone in its byte."""
    if values.shape[-1] % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    packed: Array = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed


def _unpack(packed: Array) -> Array:
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    values[..., 0::2] = packed & 15
    values[..., 1::2] = packed >> 4
    return values


QUANTIZER = Quantizer(
    name="int4_block",
    bits=4,
    parts=parts,
    quantize=quantize,
    restore=restore,
    measured=compiled.blocks(parts),
)
