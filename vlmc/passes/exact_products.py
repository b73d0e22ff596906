"""Products with weights as a checkpoint stores them, bfloat16; as exact as in float32."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.backends.onnxruntime import native

ROWS = 64  # that the kernel takes together


def can_multiply(dtype: str) -> bool:
    """Whether this machine has the kernel for weights of a safetensors dtype."""
    return dtype == "BF16" and _function() is not None


def multiply(x: NDArray[np.float32], rows: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """``out [M, n] = x [M, K] rows [n, K]^T``; a row of ``out`` depends on that of ``x`` alone.

    ``x`` and ``rows`` are contiguous, as each row of ``out`` is.
    """
    multiplied = _function()
    assert multiplied is not None
    (m, k), n = x.shape, len(rows)
    assert (rows.shape, out.shape) == ((n, k), (m, n))
    assert all(array.flags.c_contiguous for array in (x, rows))
    assert out.strides[1] == out.itemsize
    sizes = [ctypes.c_size_t(size) for size in (m, k, n, out.strides[0] // out.itemsize)]
    at = [ctypes.c_void_p(array.ctypes.data) for array in (x, rows, out)]
    if not multiplied(at[0], sizes[0], sizes[1], at[1], sizes[2], at[2], sizes[3]):
        raise MemoryError("no memory for a product")


@cache
def _function() -> Any:
    """``vlmc_linear_bfloat16``, or None; other threads run while it works."""
    file = native.library()
    return None if file is None else ctypes.CDLL(str(file)).vlmc_linear_bfloat16
