"""Weights cut into blocks along their columns, the last one filled up with zeros."""

import math

import numpy as np

from vlmc.quantizers.spec import Array

# Below it a scale is zero or loses its digits: the codes are then all zero.
TINY = np.float32(np.finfo(np.float32).tiny)
_MOST = np.float32(np.finfo(np.float16).max)


def count(columns: int, block: int) -> int:
    """Blocks in one row.

    Raises:
        ValueError: ``block`` is not a power of two of at least 16, as the kernels demand.
    """
    if block < 16 or block & (block - 1):
        raise ValueError(f"a block of {block} is not a power of two of at least 16")
    return math.ceil(columns / block)


def split(weight: Array, block: int) -> Array:
    """float32 ``[n, K]`` -> ``[n, blocks, block]``, a view where K is a multiple of the block."""
    rows, columns = weight.shape
    blocks = count(columns, block)
    if columns < blocks * block:
        padded = np.zeros((rows, blocks * block), np.float32)
        padded[:, :columns] = weight
        weight = padded
    return weight.reshape(rows, blocks, block)


def join(cut: Array, columns: int) -> Array:
    """The inverse of ``split``: float32 ``[n, blocks, block]`` -> ``[n, columns]``."""
    return cut.reshape(len(cut), -1)[:, :columns]


def usable(scale: Array) -> Array:
    """Scales to divide by: 1 where a block holds nothing but (nearly) zeros."""
    return np.where(scale < TINY, np.float32(1), scale)


def as_stored(scale: Array) -> Array:
    """The nearest scales of float16, at most its largest number: half the bytes to read.

    Codes are chosen for them: what their rounding costs is steps that are a little wider.
    """
    return np.minimum(scale, _MOST).astype(np.float16)
