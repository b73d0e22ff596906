"""Rows of a learned table of positions, mixed so that the table fits a picture's grid."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from vlmc.schema import Frozen

# Of cubic convolution, as torch has it.
_A = -0.75


class PositionTable(Frozen):
    """A square table of positions, and how it is stretched over a picture's patches.

    Attributes:
        side: Positions along a side of the table.
        taps: Positions along each axis that a patch mixes: 2 (linear) or 4 (cubic).
        centers: ``corners``: the table's outermost positions lie on the outermost patches
            (``align_corners``); ``halves``: on half a step; ``sampled``: the same, by the
            arithmetic of ``grid_sample``.
    """

    side: PositiveInt
    taps: Literal[2, 4]
    centers: Literal["corners", "halves", "sampled"]


def table_rows(
    places: NDArray[np.int64], rows: int, columns: int, table: PositionTable
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What each patch takes of the table.

    Mirrors ``get_vision_interpolation_indices_and_weights`` of ``transformers.vision_utils`` with
    clamped borders, for ``sampled`` ``Glm4vVisionEmbeddings.forward``.

    Args:
        places: Row and column of each patch, [P, 2].
        rows: Rows of patches in the picture.
        columns: The same across.
        table: The table.

    Returns:
        int64 and float32 [P, taps**2]: rows of the table, counted line by line, and their weights.
    """
    down, weights_down = _axis(places[:, 0], rows, table)
    across, weights_across = _axis(places[:, 1], columns, table)
    indices = down[:, :, None] * table.side + across[:, None, :]
    weights = weights_down[:, :, None] * weights_across[:, None, :]
    return indices.reshape(len(places), -1), weights.reshape(len(places), -1)


def _axis(
    index: NDArray[np.int64], size: int, table: PositionTable
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions and weights along one axis; the order of operations is transformers'."""
    here, one, side = index.astype(np.float32), np.float32(1), np.float32(table.side)
    if table.centers == "corners":
        source = here * (side - one) / np.float32(max(size - 1, 1))
    elif table.centers == "halves":
        source = (here + np.float32(0.5)) * side / np.float32(size) - np.float32(0.5)
    else:
        spread = (here + np.float32(0.5)) / np.float32(size) * np.float32(2) - one
        source = ((spread + one) * side - one) / np.float32(2)
    floor = np.floor(source)
    offsets = np.arange(2) if table.taps == 2 else np.arange(-1, 3)
    taps = floor.astype(np.int64)[:, None] + offsets
    distance = np.abs(source[:, None] - floor[:, None] - offsets.astype(np.float32))
    if table.taps == 2:
        weights = np.maximum(one - distance, np.float32(0))
    else:
        near = (np.float32(_A + 2) * distance - np.float32(_A + 3)) * distance * distance + one
        far = np.float32(_A) * distance - np.float32(5 * _A)
        far = (far * distance + np.float32(8 * _A)) * distance - np.float32(4 * _A)
        weights = np.where(distance <= 1, near, far)
    return np.clip(taps, 0, table.side - 1), weights.astype(np.float32)
