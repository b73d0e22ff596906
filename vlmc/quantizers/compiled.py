"""Quantizing by the compiled kernels, where they are: the same bits as numpy's, in one pass."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.backends.onnxruntime import native
from vlmc.quantizers.spec import Array, Loss

_MOST_BLOCK = 256


def int4_block(weight: Array, block: int) -> tuple[tuple[Array, ...], Loss] | None:
    """``QUANTIZERS["int4_block"].quantize``, and what it lost.

    Args:
        weight: float32 ``[n, K]``, finite.
        block: Columns per block.

    Returns:
        None where this machine cannot.
    """
    rows, blocks = len(weight), math.ceil(weight.shape[1] / block)
    codes = np.empty((rows, blocks, block // 2), np.uint8)
    zero_points = np.empty((rows, math.ceil(blocks / 2)), np.uint8)
    found = _quantized(weight, block, codes, zero_points)
    return found and ((codes, found[0], zero_points), found[1])


def int8_block(weight: Array, block: int) -> tuple[tuple[Array, ...], Loss] | None:
    """The same of ``QUANTIZERS["int8_block"]``."""
    codes = np.empty((len(weight), math.ceil(weight.shape[1] / block), block), np.uint8)
    found = _quantized(weight, block, codes, None)
    return found and ((codes, found[0]), found[1])


def _quantized(
    weight: Array, block: int, codes: Array, zero_points: Array | None
) -> tuple[Array, Loss] | None:
    """Fills codes and zero points; the scales, and what was lost."""
    file = native.library()
    if file is None or block > _MOST_BLOCK:
        return None
    weight = np.ascontiguousarray(weight, np.float32)
    scales, loss = np.empty(codes.shape[:2], np.float32), np.empty(3, np.float64)
    sizes = [ctypes.c_size_t(size) for size in (*weight.shape, block)]
    arrays = [
        ctypes.c_void_p(None if array is None else array.ctypes.data)
        for array in (weight, codes, scales, zero_points, loss)
    ]
    _function(file)(arrays[0], *sizes, *arrays[1:])
    return scales, Loss(*loss.tolist())


@cache
def _function(file: Path) -> Any:
    """``vlmc_quantize_blocks``; other threads run while it works."""
    function = ctypes.CDLL(str(file)).vlmc_quantize_blocks
    function.restype = None
    return function
