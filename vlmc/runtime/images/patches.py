"""A picture cut into patches for a tower that takes it at its own size."""

import numpy as np
from numpy.typing import NDArray

from vlmc.runtime.images import pixels
from vlmc.runtime.images.pixels import Values


def patchify(
    picture: NDArray[np.uint8],
    size: int,
    merge: int,
    frames: int,
    values: Values,
    *,
    channels_last: bool = False,
) -> NDArray[np.float32]:
    """Patches of ``picture`` uint8 [H, W, 3] in merged-block order, float32 [P, 3*T*ps*ps].

    Mirrors ``Qwen2VLImageProcessorPil.patchify``: the ``merge**2`` patches of a merged block are
    neighbours, and the one frame fills all ``frames`` places in time. With ``channels_last`` a
    patch's numbers are ps*ps*3*T, as ``Cosmos3EdgeImageProcessorPil.patchify`` has them.
    """
    rows, columns = picture.shape[0] // size // merge, picture.shape[1] // size // merge
    blocks = picture.reshape(rows, merge, size, columns, merge, size, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # row, column, in-block y, x, channel, y, x
    levels = pixels.table(values)
    patches = np.empty((*blocks.shape[:5], frames, size, size), dtype=np.float32)
    for channel in range(3):
        patches[:, :, :, :, channel] = levels[channel][blocks[:, :, :, :, channel, None]]
    if channels_last:
        patches = patches.transpose(0, 1, 2, 3, 6, 7, 4, 5)
    return patches.reshape(rows * columns * merge * merge, 3 * frames * size * size)


def positions(rows: int, columns: int, merge: int) -> NDArray[np.int64]:
    """Place (h, w) of every patch in the picture, int64 [rows * columns, 2], merged-block order.

    ``rows`` and ``columns`` count patches. Mirrors ``get_vision_position_ids`` of
    ``transformers.vision_utils``.
    """
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = places.reshape(rows // merge, merge, columns // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(rows * columns, 2).astype(np.int64)


def windows(places: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The windows of ``side`` x ``side`` patches that a picture's patches fall in.

    Windows at the right and lower edge may hold fewer patches than others: their last slots are
    empty. Mirrors ``get_vision_window_index`` of ``transformers.vision_utils``: the filled slots,
    read in a row, are its order, and the windows its segments.

    Args:
        places: As ``positions`` gives them, [P, 2].
        side: In patches, a multiple of the merged patch's.

    Returns:
        The patch in each slot, int64 [windows, side * side], -1 where there is none; and the slot
        of each patch, counted through all windows, int64 [P].
    """
    rows, columns = (places // side).T
    window = rows * (columns.max() + 1) + columns
    order = np.argsort(window, kind="stable")
    counts = np.bincount(window)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((len(counts), side * side), -1, dtype=np.int64)
    slot_of = np.empty(len(places), dtype=np.int64)
    slot_of[order] = window[order] * side * side + np.arange(len(places)) - before
    slots.reshape(-1)[slot_of] = np.arange(len(places))
    return slots, slot_of
