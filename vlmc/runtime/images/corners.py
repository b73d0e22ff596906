"""A feature as shares of four others, its corners: what shrinking a grid of features takes."""

import numpy as np
from numpy.typing import NDArray

Corners = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Which rows, [..., 4], and how much of each."""


def alone(rows: NDArray[np.int64]) -> Corners:
    """Each of ``rows`` [...] as it is: a first corner that is all, three that are nothing."""
    shares = np.zeros((*rows.shape, 4), dtype=np.float32)
    shares[..., 0] = 1
    return np.repeat(rows[..., None], 4, axis=-1), shares


def bilinear(grid: NDArray[np.int64], height: int, width: int) -> Corners:
    """A grid of rows [H, W], resized: [height, width, 4].

    Mirrors ``torch.nn.functional.interpolate`` with ``mode="bilinear"``, not aligned at corners
    and not smoothed.
    """
    above, below, down = _between(grid.shape[0], height)
    left, right, across = _between(grid.shape[1], width)
    rows = [grid[np.ix_(y, x)] for y in (above, below) for x in (left, right)]
    shares = [np.outer(y, x) for y in (1 - down, down) for x in (1 - across, across)]
    return np.stack(rows, axis=-1), np.stack(shares, axis=-1)


def _between(
    size: int, target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each place along an axis: the two it lies between, and its share of the second."""
    if size == 0:
        none = np.zeros(0, dtype=np.int64)
        return none, none, none.astype(np.float32)
    step = np.float32(size) / np.float32(target)
    half = np.float32(0.5)
    places = np.maximum(step * (np.arange(target, dtype=np.float32) + half) - half, 0)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, size - 1), places - first.astype(np.float32)
