"""The key-value cache: one buffer per layer, its slots written in place by the program."""

import numpy as np

from vlmc.bundle.manifest import Limits, ProgramSpec
from vlmc.errors import VlmcError
from vlmc.runtime.types import Array

_STATES = {"past_key.": "present_key.", "past_value.": "present_value."}


class Cache:
    """Buffers ``[batch-size, KV, ctx-len, D]``; a run of slots is a contiguous slice of them.

    Memory is asked for once and becomes resident page by page, as positions are written.
    """

    def __init__(self, program: ProgramSpec, limits: Limits) -> None:
        outputs = {spec.name for spec in program.outputs}
        self._buffers: dict[str, Array] = {}
        self._present: dict[str, str] = {}
        for spec in program.inputs:
            prefix = spec.name[: spec.name.find(".") + 1]
            if prefix not in _STATES:
                continue
            present = _STATES[prefix] + spec.name[len(prefix) :]
            sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
            if len(sizes) != 3 or sizes[1] != limits.ctx_len or present not in outputs:
                raise VlmcError(f"'{spec.name}' {list(spec.shape)} is not a cache of ctx-len")
            self._buffers[spec.name] = np.zeros((limits.batch_size, *sizes), spec.dtype)
            self._present[spec.name] = present

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, resident or not."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def inputs(self, slots: slice) -> dict[str, Array]:
        """The states of ``slots`` by input name; views."""
        return {name: buffer[slots] for name, buffer in self._buffers.items()}

    def outputs(self, slots: slice) -> dict[str, Array]:
        """The same views by output name."""
        return {self._present[name]: buffer[slots] for name, buffer in self._buffers.items()}

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot over another's."""
        for buffer in self._buffers.values():
            buffer[target, :, :length] = buffer[source, :, :length]
