"""Quantizing by the compiled kernels, where they are: the same bits as numpy's, in one pass."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.backends.onnxruntime import native
from vlmc.quantizers.spec import Array, Loss, Part

_MOST_BLOCK = 256


Measured = Callable[[Array, int], tuple[tuple[Array, ...], Loss] | None]
Rounded = Callable[[Array, int], Array | None]


def blocks(parts: Callable[[int, int, int], tuple[Part, ...]]) -> Measured:
    """``Quantizer.measured`` of a format in blocks: of 4 bits where it has zero points, else of 8.

    Args:
        parts: The format's.

    Returns:
        ``(float32 [n, K], or the bits of bfloat16 as uint16; columns per block) -> one array per
        part, and what was lost``; None where this machine cannot.
    """
    known = lru_cache(parts)

    def measured(weight: Array, block: int) -> tuple[tuple[Array, ...], Loss] | None:
        return _quantized(weight, block, known)

    return measured


def rounded(parts: Callable[[int, int, int], tuple[Part, ...]]) -> Rounded:
    """``Quantizer.rounded`` of a format of 4 bits in panels.

    Args:
        parts: The format's.
    """

    def restored(weight: Array, block: int) -> Array | None:
        out = np.empty(weight.shape, np.float32)
        return None if _quantized(weight, block, parts, out) is None else out

    return restored


def _quantized(
    weight: Array,
    block: int,
    parts: Callable[[int, int, int], tuple[Part, ...]],
    restored: Array | None = None,
) -> tuple[tuple[Array, ...], Loss] | None:
    """The parts of a weight, and what was lost; ``restored`` gets what they stand for."""
    file = native.library()
    if file is None or block > _MOST_BLOCK:
        return None
    stored = weight.dtype == np.uint16
    weight = np.ascontiguousarray(weight, weight.dtype if stored else np.float32)
    rows, columns = weight.shape
    made = parts(rows, columns, block)
    lanes = made[0].rows_each
    arrays: tuple[Array, ...] = tuple(np.empty(part.shape, part.dtype) for part in made)
    if rows % lanes:
        for array in arrays:
            array[-1] = 0  # what fills up the last panel is not written
    codes, scales, *zeros = arrays
    loss = np.empty(3, np.float64)
    sizes = [ctypes.c_size_t(size) for size in (*weight.shape, block)]
    addresses = [
        ctypes.c_void_p(None if array is None else array.ctypes.data)
        for array in (weight, codes, scales, zeros[0] if zeros else None, loss, restored)
    ]
    if restored is None:
        quantize = _function(file, "vlmc_quantize_stored")
        kind, panels = ctypes.c_int(stored), ctypes.c_int(lanes > 1)
        quantize(addresses[0], kind, *sizes, panels, *addresses[1:-1])
    else:
        _function(file, "vlmc_round_blocks")(addresses[0], *sizes, *addresses[1:])
    return arrays, Loss(*loss.tolist())


@cache
def _function(file: Path, name: str) -> Any:
    """Of the library; other threads run while it works."""
    function = getattr(ctypes.CDLL(str(file)), name)
    function.restype = None
    return function
