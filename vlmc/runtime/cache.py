"""The key-value cache: one buffer per layer, its slots written in place by the program."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlmc.bundle.manifest import Limits, ProgramSpec
from vlmc.errors import VlmcError
from vlmc.runtime.types import Array

STATES = ("past_state.", "past_matrix.")
"""How the names of those inputs begin that each step replaces as a whole."""
MEMORY = ("past_key.", "past_value.", *STATES)
"""How the names of a cache's inputs begin; outputs say ``present`` instead."""


class Cache:
    """Buffers ``[batch-size, KV, ctx-len, D]``; a run of slots is a contiguous slice of them.

    A layer without keys and values has states instead, ``[batch-size, ...]``, which each step
    replaces: they are those after the last position written, and after no other.

    Memory is asked for once and becomes resident page by page, as positions are written. A slot
    remembers which chunks of which prompt it holds (see ``vlmc.runtime.prefix``).
    """

    def __init__(self, program: ProgramSpec, limits: Limits) -> None:
        outputs = {spec.name for spec in program.outputs}
        self._buffers: dict[str, Array] = {}
        self._present: dict[str, str] = {}
        self._views: dict[tuple[int, int], dict[str, Array]] = {}
        for spec in program.inputs:
            prefix = spec.name[: spec.name.find(".") + 1]
            if prefix not in MEMORY:
                continue
            present = spec.name.replace("past", "present", 1)
            sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
            fits = prefix in STATES or (len(sizes) == 3 and sizes[1] == limits.ctx_len)
            if len(sizes) != len(spec.shape) - 1 or not fits or present not in outputs:
                raise VlmcError(f"'{spec.name}' {list(spec.shape)} is not a cache of ctx-len")
            try:
                self._buffers[spec.name] = np.zeros((limits.batch_size, *sizes), spec.dtype)
            except MemoryError as error:
                raise VlmcError(
                    "the key-value cache does not fit this machine's memory",
                    hint="rebuild with a smaller ctx-len or batch-size, or 'kv-cache: fp16'",
                ) from error
            self._present[spec.name] = present
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
