"""Checkpoints on disk: where every tensor lies in the safetensors files, and its rows on demand."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.errors import VlmcError, nearest

SINGLE = "model.safetensors"
SHARDED = "model.safetensors.index.json"

# Bits per element of every dtype the safetensors format names.
_BITS = {
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

_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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


def read_index(folder: Path) -> dict[str, TensorRef]:
    """All tensors of a checkpoint by name, from the headers alone.

    Reads ``model.safetensors``, or the shards named by ``model.safetensors.index.json``; the
    first wins where both lie, as in transformers.

    Args:
        folder: The model's folder.

    Raises:
        VlmcError: There are no safetensors weights (pickles are refused with the command that
            converts them), a shard is missing, a file is truncated or no safetensors file, or
            the index names a tensor that its shard lacks.
    """
    if (folder / SINGLE).is_file():
        return dict(sorted(_read_header(folder / SINGLE).items()))
    if (folder / SHARDED).is_file():
        return _read_shards(folder)
    raise _no_weights(folder)


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights of a checkpoint, sorted: what its digest is taken over.

    Raises:
        VlmcError: As ``read_index`` does.
    """
    return tuple(sorted({ref.path for ref in read_index(folder).values()}))


def find_tensor(index: Mapping[str, TensorRef], name: str) -> TensorRef:
    """The tensor of that name.

    Raises:
        VlmcError: The checkpoint has no such tensor; the nearest name is suggested.
    """
    if name in index:
        return index[name]
    near = nearest(name, index)
    hint = f"did you mean '{near}'?" if near else "is this the checkpoint of another model?"
    raise VlmcError(f"the checkpoint has no tensor '{name}'", hint=hint)


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
    raw = read_stored(ref, start, stop)
    if raw.dtype == np.float32:
        return raw
    out = np.empty(raw.shape, np.float32)
    if ref.dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        bits = out.view(np.uint32)
        bits[...] = raw
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, refused later
            out[...] = raw
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
    offset = ref.begin + first * (_BITS[ref.dtype] // 8)
    try:
        file = os.open(ref.path, os.O_RDONLY)
        try:
            done = 0
            while done < len(buffer):
                got = os.preadv(file, [buffer[done:]], offset + done)
                if not got:
                    raise _truncated(ref.path, f"inside tensor '{ref.name}'")
                done += got
        finally:
            os.close(file)
    except OSError as error:
        raise VlmcError(
            f"cannot read tensor '{ref.name}': {error.strerror}", at=str(ref.path)
        ) from error


def _read_shards(folder: Path) -> dict[str, TensorRef]:
    place = folder / SHARDED
    try:
        weight_map = json.loads(place.read_text("utf-8"), object_pairs_hook=_unique)["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise TypeError
        if not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VlmcError(
            "not an index of safetensors shards: expected {'weight_map': {tensor: file}}",
            at=str(place),
            hint="download the checkpoint again",
        ) from error
    shards: dict[str, dict[str, TensorRef]] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise VlmcError(f"shard '{file}' does not lie beside the index", at=str(place))
        if not (folder / file).is_file():
            raise VlmcError(
                f"shard '{file}' is missing",
                at=str(place),
                hint="the download is incomplete: fetch the checkpoint again",
            )
        shards[file] = _read_header(folder / file)
    for name, file in sorted(weight_map.items()):
        if name not in shards[file]:
            raise VlmcError(
                f"tensor '{name}' is not in shard '{file}', where the index puts it",
                at=str(place),
                hint="shards and index come from different downloads: fetch the checkpoint again",
            )
    return {name: shards[file][name] for name, file in sorted(weight_map.items())}


def _read_header(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file: 8 bytes of length, a JSON header, then the data."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise _bad_start(path, head + file.read(56), length)
            text = file.read(length)
    except OSError as error:
        raise VlmcError(f"cannot read the weights: {error.strerror}", at=str(path)) from error
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad_header(path, str(error)) from error
    if not isinstance(header, dict):
        raise _bad_header(path, "it is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _tensor(path, size, 8 + length, name, entry) for name, entry in header.items()}


def _tensor(path: Path, size: int, data: int, name: str, entry: Any) -> TensorRef:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _bad_header(path, f"tensor '{name}' lacks dtype, shape or data_offsets")
    if dtype not in _BITS:
        raise _bad_header(path, f"tensor '{name}' has the unknown dtype '{dtype}'")
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        raise _bad_header(path, f"tensor '{name}' has the shape {shape}")
    if not 0 <= begin <= end or (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _bad_header(
            path, f"tensor '{name}' of {dtype} {shape} cannot lie in bytes {begin} to {end}"
        )
    if data + end > size:
        raise _truncated(path, f"tensor '{name}' ends at byte {data + end}, the file at {size}")
    return TensorRef(name, path, dtype, tuple(shape), data + begin, end - begin)


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"'{key}' appears twice")
        found[key] = value
    return found


def _bad_header(path: Path, why: str) -> VlmcError:
    return VlmcError(
        f"its safetensors header is broken: {why}",
        at=str(path),
        hint="download the checkpoint again",
    )


def _truncated(path: Path, where: str) -> VlmcError:
    return VlmcError(
        f"the file is truncated: {where}",
        at=str(path),
        hint="the download is incomplete: fetch the checkpoint again",
    )


def _bad_start(path: Path, start: bytes, length: int) -> VlmcError:
    """The error for a file whose first bytes are no header length."""
    shown = start.lstrip().lower()
    if shown.startswith(b"<"):
        what, hint = "an HTML page", "the download was answered by a web page (a login, a proxy)"
    elif shown.startswith(b"version https://git-lfs"):
        what, hint = "a git-lfs pointer", "fetch the content with: git lfs pull"
    elif len(start) < 8:
        return _truncated(path, f"it holds {len(start)} bytes")
    elif 2 <= length <= _MAX_HEADER:
        return _truncated(path, f"it ends inside its header of {length} bytes")
    else:
        what, hint = "no safetensors file", "download the checkpoint again"
    return VlmcError(f"this is {what}, not weights", at=str(path), hint=hint)


def _no_weights(folder: Path) -> VlmcError:
    if not folder.is_dir():
        return VlmcError("there is no such folder", at=str(folder))
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in files if name.endswith(_PICKLES)]
    strays = [name for name in files if name.endswith(".safetensors")]
    if pickles and not strays:
        return VlmcError(
            f"the weights are pickles ({pickles[0]}), which run code when they are read: refused",
            at=str(folder),
            hint="convert them inside that folder, on a machine where they can do no harm:\n"
            '    python -c "from transformers import AutoModelForImageTextToText as M; '
            "M.from_pretrained('.', dtype='auto').save_pretrained('.')\"",
        )
    found = f"found only {', '.join(strays)}" if strays else "no weights are here"
    return VlmcError(
        f"neither {SINGLE} nor {SHARDED} is in the model's folder: {found}",
        at=str(folder),
        hint="fetch the checkpoint again, with its index" if strays else None,
    )
