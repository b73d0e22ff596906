"""Our kernels under test: the library, its C functions, and what they should give."""

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from vlmc.backends.onnxruntime import native


def built() -> list[Path]:
    """The libraries, whatever this CPU can run and the environment says."""
    files = (native._built(native._FOLDER, name) for _, name, _ in native._LEVELS)
    return [file for file in files if file]


KERNELS = native.library()
# Codes this near to the middle of two may be rounded either way: a scale in float32 is off by some
# 1e-7, a code is at most 127.
_TIE = 1e-4
# Of the sum of what is added up: float32.
_ROUNDING = 1e-6
_SMALLEST = 1e-12


def with_kernels(test: Callable[..., None]) -> Callable[..., None]:
    """The test, or where nothing was built or the CPU can't run it, that this is known.

    Goes above ``parametrize``.
    """

    def absent() -> None:
        assert native.library() is None
        assert native.why_not()

    return test if KERNELS else absent


def call(name: str, *values: object) -> None:
    """Calls a function of the library: arrays (None: null), sizes; the last array is written.

    Every array ends where memory that can't be read begins: a byte too far is a crash.
    """
    function = getattr(ctypes.CDLL(str(KERNELS)), name)
    function.restype = None
    held = {id(value): Guarded(value) for value in values if isinstance(value, np.ndarray)}
    function(*(_argument(held.get(id(value), value)) for value in values))
    out = values[-1]
    assert isinstance(out, np.ndarray)
    out[...] = held[id(out)].array
    for one in held.values():
        one.release()


class Guarded:
    """A copy of an array whose last byte is the last that may be read."""

    def __init__(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        page = mmap.PAGESIZE
        size = -(-array.nbytes // page) * page
        self.memory = mmap.mmap(-1, size + page)
        self.array = np.frombuffer(self.memory, array.dtype, array.size, size - array.nbytes)
        self.array = self.array.reshape(array.shape)
        self.array[...] = array
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory, size - array.nbytes))
        end = ctypes.c_void_p(self.address + array.nbytes)
        self.protect = lambda how: ctypes.CDLL(None).mprotect(end, ctypes.c_size_t(page), how)
        assert self.protect(0) == 0  # PROT_NONE

    def release(self) -> None:
        self.protect(mmap.PROT_READ | mmap.PROT_WRITE)


def _argument(value: object) -> object:
    if isinstance(value, Guarded):
        return ctypes.c_void_p(value.address)
    return ctypes.c_void_p(None) if value is None else ctypes.c_size_t(value)


def steps(node):
    """The operators of a ``Chain``, as nodes; what only they read is named ``place.0`` and on."""
    plan = next(a.s.decode() for a in node.attribute if a.name == "plan").split()
    inputs, outputs, places = map(int, plan[:3])
    names = [*node.input, *node.output[:outputs], *(f"place.{i}" for i in range(places)), ""]
    assert len(node.input) == inputs
    assert len(node.output) == outputs + 1
    words = iter(plan[3 + places :])
    found = []
    for op in words:
        both = [[names[int(next(words))] for _ in range(int(next(words)))] for _ in range(2)]
        made = onnx.helper.make_node(op, *both, domain=node.domain)
        for attribute in node.attribute:
            step, _, name = attribute.name.partition(".")
            if name and int(step) == len(found):
                made.attribute.add().CopyFrom(attribute)
                made.attribute[-1].name = name
        found.append(made)
    return found


def near(y, expected, allowed):
    """``y`` is float32 and nowhere further from ``expected`` than ``allowed``."""
    assert y.shape == expected.shape
    assert y.dtype == np.float32
    error = np.abs(y - expected)
    worst = np.argmax(error - allowed) if y.size else None
    assert np.all(error <= allowed), (worst, error.flat[worst], np.broadcast_to(allowed, y.shape))


def linear_panels(x, w, scales, bias):
    """What ``vlmc::linear_panels`` gives in exact arithmetic, and how far from it a result may be.

    float64 ``[..., N]`` both. Allowed are the roundings of float32, and for a code that lies in
    the middle of two, either.
    """
    codes, loose, step = _quantized(x)
    weights = unpanelled(w, len(scales), x.shape[-1]).astype(np.float64) * scales[:, None]
    return _product(codes * step, loose * step, weights, bias)


def panelled(w):
    """int8 ``[N, K]`` as ``vlmc::linear_panels`` reads it."""
    panels = np.zeros((-(-w.shape[0] // 64), -(-w.shape[1] // 4), 64, 4), np.int8)
    for (channel, at), code in np.ndenumerate(w):
        panels[channel // 64, at // 4, channel % 64, at % 4] = code
    return panels


def unpanelled(panels, n, k):
    """The inverse, to ``[n, k]``."""
    channel, at = np.ogrid[:n, :k]
    return panels[channel // 64, at // 4, channel % 64, at % 4]


def laned(array):
    """A part of blocks as ``vlmc::linear_blocks`` reads it: 16 channels side by side.

    ``[N, blocks, bytes]``, or ``[N, numbers]``.
    """
    channel, at = np.ogrid[: len(array), : array.shape[1]]
    if array.ndim == 2:
        panels = np.zeros((-(-len(array) // 16), array.shape[1], 16), array.dtype)
        panels[channel // 16, at, channel % 16] = array
        return panels
    channel, at, byte = np.ogrid[: len(array), : array.shape[1], : array.shape[2]]
    panels = np.zeros((-(-len(array) // 16), array.shape[1], array.shape[2] // 4, 16, 4), np.uint8)
    panels[channel // 16, at, byte // 4, channel % 16, byte % 4] = array
    return panels


def linear_blocks(x, w, scales, zero_points, bits, bias):
    """Likewise of ``vlmc::linear_blocks``, of parts row by row."""
    scales = scales.astype(np.float64)
    weights, unsure = dequantize(w, scales, zero_points, bits), 0.0
    # Codes and zero points are summed up apart.
    sizes = dequantize(w, np.abs(scales), zero_points, bits, sign=1)
    rows = np.zeros((x.size // x.shape[-1], weights.shape[1]))
    rows[:, : x.shape[-1]] = x.reshape(-1, x.shape[-1])
    block = weights.shape[1] // scales.shape[1]
    if bits == 4 and len(rows) > 8:
        zeros = _zeros(scales, zero_points)
        top = (np.abs(scales) * np.maximum(zeros, 15 - zeros)).max(axis=1, keepdims=True)
        unit = np.maximum(top, _SMALLEST) / 127
        # Ratios of scales are whole 1024ths there, of codes up to 15.
        whole, unsure = _rounded(weights / unit, _TIE + 15 / 2048)
        weights, unsure = whole * unit, unsure * unit
        sizes = np.abs(weights)
        block = weights.shape[1]
    codes, loose, step = _quantized(rows.reshape(len(rows), rows.shape[1] // block, block))
    codes, loose = (codes * step).reshape(rows.shape), (loose * step).reshape(rows.shape)
    y, allowed = _product(codes, loose, weights, bias, unsure, sizes)
    shape = (*x.shape[:-1], len(w))
    return y.reshape(shape), allowed.reshape(shape)


def linear_float(x, w, bias):
    """Likewise of ``vlmc::linear_float``."""
    y, allowed = _product(x.astype(np.float64), np.zeros(x.shape), w.astype(np.float64), bias)
    return y, 3 * allowed  # one sum of all: its roundings grow with its length


def _product(x, loose, weights, bias, unsure=0.0, sizes=None):
    """x weights^T + bias, where x may be off by ``loose`` and the weights by ``unsure``.

    What is summed up is as large as ``sizes`` (the weights).
    """
    sizes = np.abs(weights) if sizes is None else sizes
    added = 0.0 if bias is None else bias.astype(np.float64)
    y = x @ weights.T + added
    allowed = loose @ np.abs(weights).T + (np.abs(x) + loose) @ (np.zeros_like(weights) + unsure).T
    allowed += _ROUNDING * (np.abs(x) @ sizes.T + np.abs(added))
    return y, allowed


def _quantized(x):
    """Codes along the last axis, where the code beside would do, the size of a code's step."""
    x = x.astype(np.float64)
    step = (np.abs(x).max(axis=-1, keepdims=True, initial=0) + _SMALLEST) / 127
    return *_rounded(x / step), step


def _rounded(x, tie=_TIE):
    return np.rint(x), np.abs(np.abs(x - np.trunc(x)) - 0.5) < tie


def dequantize(w, scales, zero_points, bits, sign=-1):
    """float64 ``[N, blocks * block]`` of codes ``[N, blocks, bytes]`` as ``MatMulNBits`` packs.

    With ``sign=1``, zero points are added.
    """
    codes = (w if bits == 8 else nibbles(w)).astype(np.float64)
    zeros = 128.0 if bits == 8 else _zeros(scales, zero_points)[..., None]
    return ((codes + sign * zeros) * scales[..., None]).reshape(len(w), -1)


def _zeros(scales, zero_points):
    if zero_points is None:
        return np.full(scales.shape, 8.0)
    return nibbles(zero_points)[:, : scales.shape[1]].astype(np.float64)


def nibbles(packed):
    """Low nibble first: twice as many values along the last axis."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
