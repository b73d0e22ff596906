"""Pictures resized as torch does it without antialiasing, in float32, then rounded to levels.

Mirrors ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` on float32 (ATen's
``upsample_bilinear2d`` on a CPU that multiplies and adds in one rounding): the four neighbours of a
pixel, each with one weight, added in ATen's order. The result is the same to the last bit.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Shares = tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]


def resized(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """``picture`` uint8 [H, W, 3] as [height, width, 3]; ties go to the even level."""
    if picture.shape[:2] == (height, width):
        return picture
    levels = picture.astype(np.float32)
    upper, lower, above, below = _shares(picture.shape[0], height)
    left, right, before, after = _shares(picture.shape[1], width)
    total = np.zeros((height, width, 3), np.float32)
    for rows, vertical, columns, horizontal in (
        (upper, above, right, after),
        (upper, above, left, before),
        (lower, below, left, before),
        (lower, below, right, after),
    ):
        weights = (vertical[:, None] * horizontal[None])[..., None]
        total = _added(levels[rows][:, columns], weights, total)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _added(x: Floats, weight: Floats, total: Floats) -> Floats:
    """``x * weight + total``, rounded once: float64 holds the product whole."""
    product = x.astype(np.float64)
    product *= weight
    product += total
    return product.astype(np.float32)


def _shares(size: int, length: int) -> Shares:
    """For each new pixel the two old ones it lies between, and their shares."""
    scale = np.float64(np.float32(size) / np.float32(length))
    place = (scale * (np.arange(length) + 0.5) - 0.5).astype(np.float32)
    place = np.maximum(place, np.float32(0))
    first = np.minimum(place.astype(np.int64), size - 1)
    far = np.clip(place - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, np.minimum(first + 1, size - 1), np.float32(1) - far, far
