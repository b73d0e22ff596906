"""Streams tensors from a checkpoint through their quantizer to their place in a weights file."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef, read_rows, read_stored
from vlmc.passes.checkpoint_index import find_tensor
from vlmc.passes.scaling import Scaling
from vlmc.passes.weight_stream import PlacedWeight, Progress, part_bytes, stream_weights
from vlmc.quantizers import QUANTIZERS, Part, Quantizer
from vlmc.schema import lookup

Array = NDArray[Any]

_PLAIN = ("fp32", "fp16")
# Large tensors start on a page, so that a reader can map them.
_PAGE, _LINE, _LARGE = 4096, 64, 1 << 20


@dataclass(frozen=True, eq=False)
class WeightJob:
    """One initializer to write.

    Attributes:
        name: The initializer; its other parts are named ``name + part.suffix``.
        sources: Tensors of the checkpoint, joined along their rows (packed projections).
        format: A row of ``QUANTIZERS``. A weight of more than two axes is ``[rows, the rest]``
            to it; ``fp32`` and ``fp16`` keep the shape and take any number of axes.
        block: Columns per block, for formats that have blocks.
        reshape: The shape to record instead, same elements; ``fp32`` and ``fp16`` only.
        transpose: Store ``[K, N]``, as a plain ``MatMul`` reads it; ``fp32``, ``fp16`` only.
        value: A tensor computed by the compiler, instead of ``sources``. One of float32 goes
            through ``format`` like a weight; one of any other dtype is stored as it is.
        scaling: What is done to it first; None: nothing.
    """

    name: str
    sources: tuple[str, ...] = ()
    format: str = "fp32"
    block: int = 32
    reshape: tuple[int, ...] | None = None
    transpose: bool = False
    value: Array | None = None
    scaling: Scaling | None = None


@dataclass(frozen=True)
class StoredTensor:
    """Where one initializer lies, and what its format cost.

    Attributes:
        file: Name of the weights file, without a folder.
        offset: Of its first byte; a multiple of 64, or of 4096 from 1 MiB on.
        nbytes: Its size in bytes.
        dtype: numpy name of its elements.
        shape: Its shape.
        relative_error: Frobenius norm of the quantization error over the weight's; only the
            main part of a weight carries it.
        max_error: Largest absolute quantization error.
    """

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    relative_error: float = 0.0
    max_error: float = 0.0


class Written(NamedTuple):
    """What was written: initializers by name, and their file."""

    tensors: dict[str, StoredTensor]
    file: FileEntry


def write_weights(
    jobs: Sequence[WeightJob],
    index: Mapping[str, TensorRef],
    out_path: Path,
    *,
    block_bytes: int = 32 << 20,
    threads: int = 2,
    progress: Progress | None = None,
    once: bool = False,
) -> Written:
    """Writes all jobs into one file, in their order, and says where each initializer lies.

    A weight is never whole in memory: per thread, one piece of rows and, for parts that lie
    transposed, one block of ``block_bytes`` are. Bytes do not depend on ``threads`` nor
    ``block_bytes``. Jobs of the same sources and format share one place (a tied embedding).

    Args:
        jobs: What to write; names are unique.
        index: The checkpoint, from ``read_index``.
        out_path: The file to write; it appears once it is complete.
        block_bytes: Bytes of weights per unit of work.
        threads: Units worked on at a time.
        progress: Called with bytes done and bytes in all, after each unit.
        once: The system need not remember what was read.

    Returns:
        Every initializer, parts included, by name; the file's digest and size.

    Raises:
        VlmcError: The checkpoint lacks a tensor or holds it in the wrong shape, a value does
            not fit its format or is no number, or a file cannot be read or written.
    """
    owners: dict[str, int] = {}
    shared: dict[object, int] = {}
    weights: list[PlacedWeight] = []
    end = 0
    for job in jobs:
        if job.name in owners:
            raise ValueError(f"two jobs are named '{job.name}'")
        shares = job.sources and job.scaling is None
        key = (job.sources, job.format, job.block, job.transpose) if shares else job.name
        if key not in shared:
            shared[key] = len(weights)
            weights.append(_place(job, index, end, once=once))
            end = weights[-1].end
        owners[job.name] = shared[key]
    losses, entry = stream_weights(
        weights, out_path, end, block_bytes=block_bytes, threads=threads, progress=progress
    )
    table: dict[str, StoredTensor] = {}
    for job in jobs:
        weight, loss = weights[owners[job.name]], losses[owners[job.name]]
        for part, offset in zip(weight.parts, weight.offsets, strict=True):
            stored = StoredTensor(out_path.name, offset, part_bytes(part), part.dtype, part.shape)
            if not part.suffix:
                stored = replace(
                    stored,
                    shape=_recorded(job, part.shape),
                    relative_error=_figure(
                        math.sqrt(loss.error / loss.weight) if loss.weight else 0.0
                    ),
                    max_error=_figure(loss.largest),
                )
            table[job.name + part.suffix] = stored
    return Written(table, entry)


def _figure(value: float) -> float:
    """Six digits: a sum's last ones depend on how the rows were cut, and reports are hashed."""
    return float(f"{value:.6g}")


def _place(job: WeightJob, index: Mapping[str, TensorRef], end: int, *, once: bool) -> PlacedWeight:
    """The job's weight, placed behind ``end``."""
    row = lookup(QUANTIZERS, job.format, kind="weight format", at=job.name)
    shape, read = _source(job, index, stored=row.measured is not None and job.scaling is None)
    if job.scaling is not None:
        read = _scaled(read, job.scaling)
    rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    quantizer: Quantizer | None = row
    parts = row.parts(rows, columns, job.block)
    if job.value is not None and job.value.dtype != np.float32:
        quantizer, parts = None, (Part("", job.value.dtype.name, shape),)
    elif job.format in _PLAIN and job.transpose:
        quantizer = _transposed(row)
        parts = (replace(parts[0], shape=(columns, rows), row_axis=1),)
    elif job.format in _PLAIN:
        parts = (replace(parts[0], shape=shape),)
    elif len(shape) < 2 or job.transpose or job.reshape is not None:
        raise ValueError(f"'{job.name}' of shape {list(shape)} cannot be stored so: {job}")
    offsets: list[int] = []
    for part in parts:
        align = _PAGE if part_bytes(part) >= _LARGE else _LINE
        offsets.append(math.ceil(end / align) * align)
        end = offsets[-1] + part_bytes(part)
    label = job.sources[0] if len(job.sources) == 1 else job.name
    passing = tuple(find_tensor(index, name) for name in job.sources) if once else ()
    return PlacedWeight(
        label, rows, columns, read, quantizer, job.block, parts, tuple(offsets), passing
    )


def _transposed(plain: Quantizer) -> Quantizer:
    """The same format with its one part stored ``[K, N]``."""
    return replace(
        plain,
        quantize=lambda rows, block: (plain.quantize(rows, block)[0].T,),
        restore=lambda stored, columns, block: plain.restore((stored[0].T,), columns, block),
    )


def _recorded(job: WeightJob, shape: tuple[int, ...]) -> tuple[int, ...]:
    if job.reshape is None:
        return shape
    if math.prod(job.reshape) != math.prod(shape):
        raise ValueError(f"'{job.name}': {list(shape)} does not hold {list(job.reshape)}")
    return job.reshape


def _source(
    job: WeightJob, index: Mapping[str, TensorRef], *, stored: bool
) -> tuple[tuple[int, ...], Callable[[int, int], Array]]:
    """The job's weight as its shape and a reader of its rows as ``[n, columns]``.

    In float32; stored: bfloat16 as it is.
    """
    if (job.value is None) == (not job.sources):
        raise ValueError(f"'{job.name}' needs either sources or a value")
    if job.value is not None:
        return job.value.shape, _value_rows(job.value)
    refs = [find_tensor(index, name) for name in job.sources]
    if len(refs) == 1:
        return refs[0].shape, _joined_rows(refs, stored=stored)
    tail = refs[0].shape[1:]
    for ref in refs:
        if not ref.shape or ref.shape[1:] != tail:
            raise VlmcError(
                f"tensor '{ref.name}' of shape {list(ref.shape)} cannot be joined to "
                f"'{refs[0].name}' of shape {list(refs[0].shape)}",
                hint="is this the checkpoint of another model?",
            )
    return (sum(ref.shape[0] for ref in refs), *tail), _joined_rows(refs, stored=stored)


def _scaled(read: Callable[[int, int], Array], scaling: Scaling) -> Callable[[int, int], Array]:
    return lambda start, stop: scaling.apply(read(start, stop), start)


def _value_rows(value: Array) -> Callable[[int, int], Array]:
    width = math.prod(value.shape[1:])
    rows = np.ascontiguousarray(value).reshape(value.shape[0] if value.ndim else 1, width)
    return lambda start, stop: rows[start:stop]


def _joined_rows(refs: Sequence[TensorRef], *, stored: bool) -> Callable[[int, int], Array]:
    read_part = read_stored if stored and {ref.dtype for ref in refs} == {"BF16"} else read_rows

    def read(start: int, stop: int) -> Array:
        found: list[Array] = []
        first = 0
        for ref in refs:
            rows = ref.shape[0] if ref.shape else 1
            low, high = max(start - first, 0), min(stop - first, rows)
            if low < high:
                part = read_part(ref, low, high)
                found.append(part.reshape(high - low, math.prod(ref.shape[1:])))
            first += rows
        return found[0] if len(found) == 1 else np.concatenate(found)

    return read
