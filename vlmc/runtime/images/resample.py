"""Resizing as torchvision does it on bytes, where a processor has no Pillow class to equal.

Pillow's results differ from these by a level here and there: its weights have more bits.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Filter = Literal["bilinear", "bicubic"]
_MOST_BITS = 22
_CUBIC = -0.5


def resized(picture: NDArray[np.uint8], height: int, width: int, how: Filter) -> NDArray[np.uint8]:
    """``picture`` uint8 [H, W, C] at another size.

    Equals ``torch.nn.functional.interpolate`` of bytes with ``antialias`` bit for bit: rows first,
    then columns, each rounded to bytes, with weights of 16 bits.
    """
    if picture.shape[1] != width:
        picture = _along(picture, width, 1, how)
    if picture.shape[0] != height:
        picture = _along(picture, height, 0, how)
    return picture


def _along(picture: NDArray[np.uint8], size: int, axis: int, how: Filter) -> NDArray[np.uint8]:
    moved = np.moveaxis(picture, axis, 0)
    first, weights, bits = _weights(len(moved), size, how)
    out = np.full((size, *moved.shape[1:]), 1 << (bits - 1), dtype=np.int64)
    for tap in range(weights.shape[1]):
        source = moved[np.minimum(first + tap, len(moved) - 1)].astype(np.int64)
        out += weights[:, tap, None, None] * source
    return np.moveaxis(np.clip(out >> bits, 0, 255).astype(np.uint8), 0, axis)


def _weights(
    length: int, size: int, how: Filter
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """First source and integer weights [size, taps] of every place, and their scale in bits.

    Mirrors ``_compute_index_ranges_int16_weights`` of ATen's ``UpSampleKernel.cpp``.
    """
    scale = length / size
    support = (2 if how == "bicubic" else 1) * max(scale, 1.0)
    inverse = 1 / max(scale, 1.0)
    centers = scale * (np.arange(size) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), length)
    taps = np.arange(math.ceil(support) * 2 + 1)
    distance = np.abs((taps + first[:, None] - centers[:, None] + 0.5) * inverse)
    weights = np.where(taps < (last - first)[:, None], _kernel(distance, how), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    weights = weights / np.where(total == 0, 1.0, total)
    bits, top = 0, float(weights.max())
    while bits < _MOST_BITS and int(0.5 + top * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5))
    return first, whole.astype(np.int64), bits


def _kernel(distance: NDArray[np.float64], how: Filter) -> NDArray[np.float64]:
    if how == "bilinear":
        return np.maximum(1 - distance, 0.0)
    x, a = distance, _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
