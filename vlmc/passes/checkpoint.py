"""Tensors of a checkpoint, still on disk: rows of them on demand."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.errors import VlmcError

# Bits per element of every dtype the safetensors format names.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# How the dtypes that can be weights are read from disk, little-endian as the format is.
_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# What is asked for ahead; and how much at once, for the system does no more than that.
_AHEAD_BYTES, _ADVISED_BYTES = 192 << 20, 4 << 20


@dataclass(frozen=True)
class TensorRef:
    """One tensor of a checkpoint, still on disk.

    Attributes:
        name: Its name in the checkpoint.
        path: The file that holds it.
        dtype: The safetensors name of its elements: ``F32``, ``F16``, ``BF16``, ...
        shape: Its shape; rows are the first axis.
        begin: Offset of its first byte in ``path``.
        nbytes: Its size in bytes.
        parts: Tensors whose rows it is, one after the other; none: it lies in ``path``.
        turned: Its rows are the columns of the matrix in ``path``.
        stacked: Of each row, the matrices that it is, one under the other; none: likewise.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int
    parts: tuple[TensorRef, ...] = ()
    stacked: tuple[tuple[TensorRef, ...], ...] = ()
    turned: bool = False


def read_rows(ref: TensorRef, start: int, stop: int) -> NDArray[np.float32]:
    """Rows ``start:stop`` of a tensor as float32 ``[stop - start, ...]``.

    Beside the answer, at most the block as it is stored is held.

    Args:
        ref: A tensor of ``F64``, ``F32``, ``F16`` or ``BF16``; a scalar counts as one row.
        start: The first row.
        stop: One past the last row.

    Raises:
        VlmcError: The dtype is no weight vlmc reads, or the file ends early or cannot be read.
    """
    return as_float32(read_stored(ref, start, stop))


def as_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Numbers as ``read_stored`` gives them, in float32; itself where they are."""
    if stored.dtype == np.float32:
        return stored
    out = np.empty(stored.shape, np.float32)
    if stored.dtype == np.uint16:
        # bfloat16 is the upper half of a float32.
        bits = out.view(np.uint32)
        bits[...] = stored
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, refused later
            out[...] = stored
    return out


def read_stored(ref: TensorRef, start: int, stop: int) -> NDArray[Any]:
    """The same rows as they are stored; ``BF16`` as uint16.

    Positional reads into one buffer, not a mapping: mapped pages would count as this process's
    memory.

    Raises:
        VlmcError: As ``read_rows``.
    """
    if ref.dtype not in _STORED:
        raise VlmcError(
            f"tensor '{ref.name}' is stored as {ref.dtype}",
            at=str(ref.path),
            allowed=_STORED,
            hint="vlmc quantizes by itself: give it the model's unquantized checkpoint",
        )
    rows, *rest = ref.shape or (1,)
    if not 0 <= start <= stop <= rows:
        raise ValueError(f"no rows {start}:{stop} in '{ref.name}' of shape {list(ref.shape)}")
    if ref.turned:
        columns = replace(ref, shape=ref.shape[::-1], turned=False)
        return np.ascontiguousarray(read_stored(columns, 0, ref.shape[1])[:, start:stop].T)
    if ref.parts:
        return np.concatenate(_of_parts(ref, start, stop))
    raw: NDArray[Any] = np.empty((stop - start, *rest), _STORED[ref.dtype])
    if ref.stacked:
        for row, pieces in zip(raw, ref.stacked[start:stop], strict=True):
            np.concatenate([read_stored(p, 0, p.shape[0]) for p in pieces], out=row)
    elif raw.size:
        _read_into(ref, raw.reshape(-1).data.cast("B"), start * math.prod(rest))
    return raw


def _of_parts(ref: TensorRef, start: int, stop: int) -> list[NDArray[Any]]:
    """The rows ``start:stop``, from each part those it has."""
    found, before = [], 0
    for part in ref.parts:
        rows = part.shape[0]
        first, last = (min(max(at - before, 0), rows) for at in (start, stop))
        found.append(read_stored(part, first, last))
        before += rows
    return found


def _read_into(ref: TensorRef, buffer: memoryview, first: int) -> None:
    """Fills ``buffer`` from element ``first`` of the tensor on."""
    offset = ref.begin + first * (BITS[ref.dtype] // 8)
    try:
        file = os.open(ref.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(buffer):
                got = os.preadv(file, [buffer[done:]], offset + done)
                if not got:
                    raise truncated(ref.path, f"inside tensor '{ref.name}'")
                done += got
        finally:
            os.close(file)
    except OSError as error:
        raise VlmcError(
            f"cannot read tensor '{ref.name}': {error.strerror}", at=str(ref.path)
        ) from error


def let_go(ref: TensorRef) -> None:
    """Tells the system that a tensor will not be read again soon: its memory is of use elsewhere.

    Where the system cannot be told, nothing happens.
    """
    if hasattr(os, "posix_fadvise"):  # Linux only
        _advise(ref, os.POSIX_FADV_DONTNEED, ref.nbytes)


class ReadAhead:
    """Tensors in the order in which they are read: the system is told of them beforehand.

    It then reads the next ones from the disk while one is computed with.
    """

    def __init__(self, order: Sequence[TensorRef]) -> None:
        self._order = order
        self._place = self._told = 0

    def of(self, place: int) -> None:
        """The tensor of that place is read now."""
        if place < self._place:  # once more from the start
            self._told = 0
        self._place, room = place, _AHEAD_BYTES
        for at in range(place + 1, len(self._order)):
            room -= self._order[at].nbytes
            if room < 0:
                break
            if at >= self._told and hasattr(os, "posix_fadvise"):
                _advise(self._order[at], os.POSIX_FADV_WILLNEED, _ADVISED_BYTES)
                self._told = at + 1


def _advise(ref: TensorRef, advice: int, step: int) -> None:
    """Gives the system advice on what a tensor takes of its files, ``step`` bytes at a time."""
    pieces = (*ref.parts, *itertools.chain.from_iterable(ref.stacked))
    for piece in pieces:
        _advise(piece, advice, step)
    if pieces:
        return
    with suppress(OSError):  # advice
        file = os.open(ref.path, os.O_RDONLY)
        try:
            for at in range(0, ref.nbytes, max(1, step)):
                os.posix_fadvise(file, ref.begin + at, min(step, ref.nbytes - at), advice)
        finally:
            os.close(file)


def truncated(path: Path, where: str) -> VlmcError:
    """The error for a file that ends early."""
    return VlmcError(
        f"the file is truncated: {where}",
        at=str(path),
        hint="the download is incomplete: fetch the checkpoint again",
    )
