"""Where every tensor of a checkpoint lies, from the headers of its safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmc.errors import VlmcError, nearest
from vlmc.passes.checkpoint import BITS, TensorRef, truncated

SINGLE = "model.safetensors"
SHARDED = "model.safetensors.index.json"

_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


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
    if dtype not in BITS:
        raise _bad_header(path, f"tensor '{name}' has the unknown dtype '{dtype}'")
    if not all(type(axis) is int and axis >= 0 for axis in shape):
        raise _bad_header(path, f"tensor '{name}' has the shape {shape}")
    if not 0 <= begin <= end or (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise _bad_header(
            path, f"tensor '{name}' of {dtype} {shape} cannot lie in bytes {begin} to {end}"
        )
    if data + end > size:
        raise truncated(path, f"tensor '{name}' ends at byte {data + end}, the file at {size}")
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


def _bad_start(path: Path, start: bytes, length: int) -> VlmcError:
    """The error for a file whose first bytes are no header length."""
    shown = start.lstrip().lower()
    if shown.startswith(b"<"):
        what, hint = "an HTML page", "the download was answered by a web page (a login, a proxy)"
    elif shown.startswith(b"version https://git-lfs"):
        what, hint = "a git-lfs pointer", "fetch the content with: git lfs pull"
    elif len(start) < 8:
        return truncated(path, f"it holds {len(start)} bytes")
    elif 2 <= length <= _MAX_HEADER:
        return truncated(path, f"it ends inside its header of {length} bytes")
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
