"""The key-value cache: one buffer per layer, its slots written in place by the program."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmc.bundle.manifest import Limits, ProgramSpec
from vlmc.errors import VlmcError
from vlmc.runtime.pages import zeros_in_large_pages
from vlmc.runtime.types import Array

STATES = ("past_state.", "past_matrix.")
"""How the names of those inputs begin that each step replaces as a whole."""
MEMORY = ("past_key.", "past_value.", *STATES)
"""How the names of a cache's inputs begin; outputs say ``present`` instead."""

# Attention reads large pages faster (a cache of 47 MiB in nine tenths of the time), but each is
# resident as a whole: for caches up to so many bytes.
_LARGE_PAGES = 128 << 20
_ALIGNED = 4096


class Cache:
    """Buffers ``[batch-size, KV, ctx-len, D]``; a run of slots is a contiguous slice of them.

    A layer without keys and values has states instead, ``[batch-size, ...]``, which each step
    replaces: they are those after the last position written, and after no other.

    Memory is asked for once and becomes resident page by page, as positions are written; a small
    cache lies in large pages. A slot remembers which chunks of which prompt it holds (see
    ``vlmc.runtime.prefix``).
    """

    def __init__(self, program: ProgramSpec, limits: Limits) -> None:
        outputs = {spec.name for spec in program.outputs}
        self._buffers: dict[str, Array] = {}
        self._present: dict[str, str] = {}
        self._views: dict[tuple[int, int], dict[str, Array]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in program.inputs:
            prefix = spec.name[: spec.name.find(".") + 1]
            if prefix not in MEMORY:
                continue
            present = spec.name.replace("past", "present", 1)
            sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
            fits = prefix in STATES or (len(sizes) == 3 and sizes[1] == limits.ctx_len)
            if len(sizes) != len(spec.shape) - 1 or not fits or present not in outputs:
                raise VlmcError(f"'{spec.name}' {list(spec.shape)} is not a cache of ctx-len")
            shapes[spec.name] = (limits.batch_size, *sizes)
            self._present[spec.name] = present
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in program.inputs if spec.name in shapes}
        try:
            self._buffers = _zeros(shapes, dtypes)
        except MemoryError as error:
            raise VlmcError(
                "the key-value cache does not fit this machine's memory",
                hint="rebuild with a smaller ctx-len or batch-size, or 'kv-cache: fp16'",
            ) from error
        self._held: list[list[tuple[int, bytes]]] = [[] for _ in range(limits.batch_size)]

    @property
    def recurrent(self) -> bool:
        """Whether there are states: then a slot cannot go on from any position but its last."""
        return any(name.startswith(STATES) for name in self._buffers)

    def states(self, slot: int) -> dict[str, Array]:
        """A copy of a slot's states."""
        held = self._buffers.items()
        return {name: buffer[slot].copy() for name, buffer in held if name.startswith(STATES)}

    def restore(self, slot: int, states: Mapping[str, Array]) -> None:
        """A slot's states as they were; those before any token where there are none."""
        for name, buffer in self._buffers.items():
            if name.startswith(STATES):
                buffer[slot] = states.get(name, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, resident or not."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def inputs(self, start: int, stop: int) -> dict[str, Array]:
        """The states of slots ``start`` to ``stop - 1`` by input name.

        The same views each time, so a session knows that they are bound already.
        """
        if (start, stop) not in self._views:
            views = {name: buffer[start:stop] for name, buffer in self._buffers.items()}
            self._views[start, stop] = views
        return self._views[start, stop]

    def outputs(self, start: int, stop: int) -> dict[str, Array]:
        """The same views by output name."""
        views = self.inputs(start, stop)
        return {self._present[name]: view for name, view in views.items()}

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot over another's."""
        self.forget(target, 0)
        for name, buffer in self._buffers.items():
            if name.startswith(STATES):
                buffer[target] = buffer[source]
            else:
                buffer[target, :, :length] = buffer[source, :, :length]
        self._held[target] = [entry for entry in self._held[source] if entry[0] <= length]

    def forget(self, slot: int, start: int) -> None:
        """Says that a slot is about to be written from position ``start`` on."""
        held = self._held[slot]
        while held and held[-1][0] > start:
            held.pop()

    def remember(self, slot: int, stop: int, key: bytes) -> None:
        """Says that the chunk of this key was written, up to position ``stop - 1``."""
        self._held[slot].append((stop, key))

    def matching(self, slot: int, keys: Sequence[bytes]) -> int:
        """How many of a prompt's first chunks a slot holds already."""
        held = [key for _, key in self._held[slot]]
        pairs = zip(held, keys, strict=False)
        return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(held), len(keys)))


def _zeros(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, Array]:
    """The buffers; behind each other in large pages where they are small."""
    sizes = {name: math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items()}
    if sum(sizes.values()) > _LARGE_PAGES:
        return {name: np.zeros(shape, dtypes[name]) for name, shape in shapes.items()}
    ends = np.cumsum([-(-size // _ALIGNED) * _ALIGNED for size in sizes.values()], dtype=int)
    memory = zeros_in_large_pages(int(ends[-1]) if len(ends) else 0)
    starts = [0, *ends.tolist()]
    return {
        name: memory[start : start + sizes[name]].view(dtypes[name]).reshape(shape)
        for start, (name, shape) in zip(starts, shapes.items(), strict=False)
    }
