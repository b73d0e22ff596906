"""Our kernels under test: the library, its C functions, and what they should give."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vlmc.backends.onnxruntime import native


def built() -> Path | None:
    """The library, whatever this CPU can run and the environment says."""
    return native._file()


_FILE = built()
KERNELS = None if _FILE is None or native._fault(_FILE) else _FILE


def with_kernels(test: Callable[..., None]) -> Callable[..., None]:
    """The test, or where nothing was built or the CPU can't run it, that this is known.

    Goes above ``parametrize``.
    """

    def absent() -> None:
        assert native.library() is None
        assert native.why_not()

    return test if KERNELS else absent


def call(name: str, *values: object) -> None:
    """Calls a function of the library: arrays (None: null) and sizes."""
    function = getattr(ctypes.CDLL(str(KERNELS)), name)
    function.restype = None
    function(*(_argument(value) for value in values))


def _argument(value: object) -> object:
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.c_void_p(None) if value is None else ctypes.c_size_t(value)


def linear8(x, w, scales, bias):
    """float64 ``[..., N]``: rows of x rounded to 8 bits, all else exact."""
    step = (np.abs(x).max(axis=-1, keepdims=True, initial=0) + np.float32(1e-12)) / np.float32(127)
    codes = np.clip(np.rint(x / step), -127, 127).astype(np.int64)
    y = (codes @ w.astype(np.int64)).astype(np.float64) * step * scales
    return y if bias is None else y + bias


def dequantize(w, scales, zero_points, bits):
    """float64 ``[N, K]`` of codes ``[N, blocks, bytes]`` as ``MatMulNBits`` packs them."""
    if bits == 8:
        codes, zeros = w.astype(np.float64), 128.0
    else:
        codes = nibbles(w).astype(np.float64)
        zeros = 8.0
        if zero_points is not None:
            zeros = nibbles(zero_points)[:, : scales.shape[1], None].astype(np.float64)
    return ((codes - zeros) * scales[..., None]).reshape(len(w), -1)


def nibbles(packed):
    """Low nibble first: twice as many values along the last axis."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
