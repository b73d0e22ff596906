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
    file = native.library()
    if file is None or block > _MOST_BLOCK:
        return None
    rows, columns = weight.shape
    blocks = math.ceil(columns / block)
    parts = (
        np.empty((rows, blocks, block // 2), np.uint8),
        np.empty((rows, blocks), np.float32),
        np.empty((rows, math.ceil(blocks / 2)), np.uint8),
    )
    weight = np.ascontiguousarray(weight, np.float32)
    loss = np.empty(3, np.float64)
    sizes = [ctypes.c_size_t(size) for size in (rows, columns, block)]
    arrays = [ctypes.c_void_p(array.ctypes.data) for array in (weight, *parts, loss)]
    _function(file)(arrays[0], *sizes, *arrays[1:])
    return parts, Loss(*loss.tolist())


@cache
def _function(file: Path) -> Any:
    """``vlmc_quantize_blocks4``; other threads run while it works."""
    function = ctypes.CDLL(str(file)).vlmc_quantize_blocks4
    function.restype = None
    return function
