"""Pictures resized as torch resizes 8-bit tensors, for processors that have no Pillow version.

Mirrors ``torch.nn.functional.interpolate(mode, antialias=True)`` on uint8 (ATen's
``compute_index_ranges_int16_weights`` and ``basic_loop_aa_*``), which torchvision calls: filters as
Pillow's, but weights of 16 bits, and always the rows first. The result is the same to the last bit.
"""

import numpy as np
from numpy.typing import NDArray

FILTERS = {"bilinear": 1.0, "bicubic": 2.0}
"""Filters by name, and how far each reaches, in pixels of the smaller picture."""
# A place halfway between two pixels: the taps (pixels from the one after it), and their weights.
_HALFWAY = {
    "bilinear": ((0, 0.5), (-1, 0.5)),
    "bicubic": ((-1, 0.59375), (-2, -0.09375), (0, 0.59375), (1, -0.09375)),
}


def resized(
    picture: NDArray[np.uint8], height: int, width: int, resample: str
) -> NDArray[np.uint8]:
    """``picture`` uint8 [H, W, 3] as [height, width, 3].

    Args:
        picture: The levels.
        height: The new height; an axis that keeps its length is left alone.
        width: The new width.
        resample: A name of ``FILTERS``.
    """
    across = _along(picture.swapaxes(0, 1), width, resample).swapaxes(0, 1)
    return _along(across, height, resample)


def strided(
    plane: NDArray[np.float32], rows: int, columns: int, resample: str
) -> NDArray[np.float32]:
    """A plane of floats [H, W] as [H / rows, W / columns], each new pixel between a few old ones.

    Mirrors ``interpolate(mode, antialias=False)`` on float32, for whole factors: of an odd one
    every place falls on a pixel, of an even one between two.
    """
    return _thinned(_thinned(plane.T, columns, resample).T, rows, resample)


def _thinned(plane: NDArray[np.float32], factor: int, resample: str) -> NDArray[np.float32]:
    """The first axis, shorter by ``factor``."""
    if factor % 2 or resample == "nearest":
        return plane[0 if resample == "nearest" else factor // 2 :: factor]
    # In this order, the second product unrounded and so on, as compiled code has it.
    taps = _HALFWAY[resample]
    center = np.arange(factor // 2, len(plane), factor)
    total = np.zeros((len(center), *plane.shape[1:]), dtype=np.float32)
    for place, weight in taps:
        source = plane[np.clip(center + place, 0, len(plane) - 1)]
        total = (source.astype(np.float64) * weight + total).astype(np.float32)
    return total


def _along(picture: NDArray[np.uint8], length: int, resample: str) -> NDArray[np.uint8]:
    """The first axis brought to ``length``."""
    size = picture.shape[0]
    if size == length:
        return picture
    first, weights, precision = _weights(size, length, resample)
    # Half a unit, for rounding. At most 2**15 * 255 * 2 in all: 32 bits hold it.
    total = np.full((length, *picture.shape[1:]), 1 << (precision - 1), dtype=np.int32)
    for tap in range(weights.shape[1]):
        source = picture[np.minimum(first + tap, size - 1)]
        total += weights[:, tap, None, None] * source
    levels: NDArray[np.uint8] = np.clip(total >> precision, 0, 255).astype(np.uint8)
    return levels


def _weights(
    size: int, length: int, resample: str
) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """For each new pixel, the first old one [length] and the taps' weights [length, taps].

    Weights are in units of ``2**-precision``, the finest at which the largest has 16 bits.
    """
    scale = size / length
    reach = FILTERS[resample] * max(scale, 1.0)
    taps = int(np.ceil(np.float32(reach))) * 2 + 1
    center = scale * (np.arange(length) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), size)
    count = np.clip(last - first, 0, taps)
    tap = np.arange(taps)
    # In this order: each step rounds.
    inverse = 1.0 / scale if scale >= 1 else 1.0
    distance = np.abs((tap + first[:, None] - center[:, None] + 0.5) * inverse)
    exact = _triangle(distance) if resample == "bilinear" else _cubic(distance)
    exact[tap >= count[:, None]] = 0
    total = np.zeros(length)
    for column in exact.T:
        total += column
    exact /= total[:, None]
    precision = 0
    while precision < 22 and int(0.5 + exact.max() * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    units = exact * (1 << precision)
    return first, np.where(units < 0, units - 0.5, units + 0.5).astype(np.int32), precision


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x < 1, 1 - x, 0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
