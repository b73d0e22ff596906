"""Rows of weights on their way to disk: read, quantized, measured and written, piece by piece."""

import errno
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef, as_float32, let_go
from vlmc.quantizers import Loss, Part, Quantizer

Array = NDArray[Any]
Progress = Callable[[int, int], None]

# Work proceeds in pieces that stay in a core's cache: a quantizer passes over them many times.
_PIECE_BYTES = 2 << 20
_HASHED_BYTES, _FLUSHED_BYTES = 4 << 20, 256 << 20


@dataclass(frozen=True, eq=False)
class PlacedWeight:
    """One weight ``[rows, columns]`` with the places of its parts in the file.

    Attributes:
        label: What errors call it.
        rows: Its rows.
        columns: Elements per row.
        read: ``(start, stop)`` -> those rows as ``[n, columns]``, for a quantizer that takes it in
            bfloat16 too, as uint16.
        quantizer: What makes the parts; None where elements are stored as they are.
        block: Columns per block.
        parts: What is stored.
        offsets: Where, one per part.
        passing: Tensors that the system need not remember once they are read.
    """

    label: str
    rows: int
    columns: int
    read: Callable[[int, int], Array]
    quantizer: Quantizer | None
    block: int
    parts: tuple[Part, ...]
    offsets: tuple[int, ...]
    passing: tuple[TensorRef, ...] = ()

    @property
    def end(self) -> int:
        """Behind its last part, whose place is behind the others'."""
        return self.offsets[-1] + part_bytes(self.parts[-1])


def part_bytes(part: Part) -> int:
    """Size of a stored part in bytes."""
    return math.prod(part.shape) * np.dtype(part.dtype).itemsize


def stream_weights(
    weights: Sequence[PlacedWeight],
    out_path: Path,
    size: int,
    *,
    block_bytes: int,
    threads: int,
    progress: Progress | None,
) -> tuple[list[Loss], FileEntry]:
    """Writes every weight at its place in a new file of ``size`` bytes.

    What lies between weights is zeros. The file appears under its name once it is complete.

    Returns:
        The loss of each weight, in order; the file's digest and size.

    Raises:
        VlmcError: A file cannot be read or written, or a value does not fit its format.
    """
    units = [
        (number, start, stop)
        for number, weight in enumerate(weights)
        for start, stop in _units(weight, block_bytes)
    ]
    sizes = [4 * weight.columns for weight in weights]
    total = sum(sizes[number] * (stop - start) for number, start, stop in units)
    losses = [Loss() for _ in weights]
    partial = out_path.with_name(out_path.name + ".part")
    keep_freed_memory()
    try:
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _reserve(file, size)
            hashing = _Hashing(file)
            flushing = _Flushing(file)
            # Rows go to places known beforehand, so units may end in any order; their losses
            # are added in order, for sums to be the same each time.
            with ThreadPoolExecutor(threads) as pool, flushing.pool:
                found = pool.map(lambda unit: _write_rows(file, weights[unit[0]], *unit[1:]), units)
                done = 0
                try:
                    for (number, start, stop), loss in zip(units, found, strict=True):
                        losses[number] = losses[number].plus(loss)
                        done += sizes[number] * (stop - start)
                        if progress:
                            progress(done, total)
                        if stop == weights[number].rows:
                            for ref in weights[number].passing:
                                let_go(ref)
                            hashing.advance(weights[number].end)
                            flushing.advance(weights[number].end)
                    hashing.advance(size)
                    flushing.finish()
                except BaseException:
                    pool.shutdown(cancel_futures=True)  # an interrupt, or the first error
                    raise
        finally:
            os.close(file)
        os.replace(partial, out_path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise VlmcError(
            f"cannot write {size / 1e9:.3g} GB of weights: {error.strerror}", at=str(out_path)
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return losses, FileEntry(sha256=hashing.sha256.hexdigest(), size=size)


class _Hashing:
    """sha256 of a file that is being written, as far as it is finished and still in memory."""

    def __init__(self, file: int) -> None:
        self.sha256 = hashlib.sha256()
        self._file, self._done = file, 0

    def advance(self, end: int) -> None:
        """What lies before ``end`` will not be written again."""
        while self._done < end:
            block = os.pread(self._file, min(_HASHED_BYTES, end - self._done), self._done)
            if not block:
                raise OSError(errno.EIO, os.strerror(errno.EIO))  # somebody cut it short
            self.sha256.update(block)
            self._done += len(block)


class _Flushing:
    """Has the disk write what is finished while the rest is made: little is left to wait for."""

    def __init__(self, file: int) -> None:
        self.pool = ThreadPoolExecutor(1)
        self._file, self._asked = file, 0
        self._last: Future[None] | None = None

    def advance(self, end: int) -> None:
        """What lies before ``end`` is written, as far as the system has it."""
        if end - self._asked >= _FLUSHED_BYTES and (self._last is None or self._last.done()):
            self.finish()
            self._asked, self._last = end, self.pool.submit(os.fsync, self._file)

    def finish(self) -> None:
        """Waits for the disk; raises what it refused."""
        if self._last is not None:
            self._last.result()


def keep_freed_memory() -> None:
    """Has the allocator keep what is freed, up to some tens of MiB, instead of giving it back.

    Fresh pages would be asked for, and zeroed, for every piece: a quarter of the time. The GNU
    allocator learns its limit from the largest block it sees freed; to others this is nothing.
    """
    np.empty(30 << 20, np.uint8)  # freed at once, and never touched


def _reserve(file: int, size: int) -> None:
    """Makes the file ``size`` bytes of zeros, on disk: a full one is known now, not in an hour."""
    unsupported = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
    try:
        if size and hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in unsupported:  # some network file systems cannot
            raise
    os.ftruncate(file, size)


def _units(weight: PlacedWeight, block_bytes: int) -> list[tuple[int, int]]:
    """Runs of rows that one thread takes at a time."""
    step = _whole(weight, block_bytes // max(1, 4 * weight.columns))
    if any(part.row_axis == 1 for part in weight.parts):
        # Transposed, each column is one small write: as many rows at once as the bound allows.
        stored = sum(part_bytes(part) for part in weight.parts if part.row_axis == 1)
        step = max(1, block_bytes * weight.rows // max(1, stored))
    return [(low, min(low + step, weight.rows)) for low in range(0, weight.rows, step)]


def _whole(weight: PlacedWeight, rows: int) -> int:
    """About so many rows, all of which lie in places of their own."""
    each = max(part.rows_each for part in weight.parts)
    return max(each, rows // each * each)


def _write_rows(file: int, weight: PlacedWeight, start: int, stop: int) -> Loss:
    """Writes the parts of rows ``start:stop``; those that lie transposed once all are there."""
    turned = {
        part.suffix: np.empty((part.shape[0], stop - start), part.dtype)
        for part in weight.parts
        if part.row_axis == 1
    }
    loss = Loss()
    step = _whole(weight, _PIECE_BYTES // max(1, 4 * weight.columns))
    for low in range(start, stop, step):
        high = min(low + step, stop)
        arrays, piece = _quantize(weight, weight.read(low, high))
        loss = loss.plus(piece)
        for part, offset, array in zip(weight.parts, weight.offsets, arrays, strict=True):
            if part.row_axis == 1:
                turned[part.suffix][:, low - start : high - start] = array
            else:
                places = math.ceil(weight.rows / part.rows_each)
                place = part_bytes(part) // places * (low // part.rows_each)
                _write_at(file, array, offset + place)
    for part, offset in zip(weight.parts, weight.offsets, strict=True):
        if part.row_axis == 1:
            _write_columns(file, turned[part.suffix], part, offset, start)
    return loss


def _quantize(weight: PlacedWeight, rows: Array) -> tuple[tuple[Array, ...], Loss]:
    """The parts of these rows, and what the format lost."""
    quantizer = weight.quantizer
    if quantizer is None:
        return (rows,), Loss()
    if quantizer.bits == 32:
        return quantizer.quantize(rows, weight.block), Loss()
    found = None
    if quantizer.measured:
        found = quantizer.measured(rows, weight.block)
        rows = rows if found else as_float32(rows)
    if not (math.isfinite(found[1].weight) if found else np.isfinite(rows).all()):
        raise VlmcError(
            f"tensor '{weight.label}' holds values that are no finite numbers (inf or nan)",
            hint="the checkpoint is damaged, or was saved from a diverged training run",
        )
    if found:
        return found
    try:
        arrays = quantizer.quantize(rows, weight.block)
    except VlmcError as error:
        raise error.located(f"tensor '{weight.label}'") from error
    wrong = quantizer.restore(arrays, weight.columns, weight.block)[: len(rows)]
    wrong -= rows
    largest = float(np.abs(wrong).max(initial=0.0))
    return arrays, Loss(_square_sum(wrong), _square_sum(rows), largest)


def _square_sum(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _write_at(file: int, array: Array, offset: int) -> None:
    if not array.size:
        return
    left = np.ascontiguousarray(array).data.cast("B")
    while len(left):
        done = os.pwrite(file, left, offset)
        left, offset = left[done:], offset + done


def _write_columns(file: int, columns: Array, part: Part, offset: int, start: int) -> None:
    """Writes ``columns [K, n]`` as columns ``start`` on of the part ``[K, N]``."""
    if columns.shape == part.shape:
        _write_at(file, columns, offset)
        return
    pitch = columns.itemsize
    for row in range(part.shape[0]):
        _write_at(file, columns[row], offset + (row * part.shape[1] + start) * pitch)
