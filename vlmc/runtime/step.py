"""What a step that decodes reads and writes: arrays that stay where they are."""

from collections.abc import Sequence

import numpy as np

from vlmc.runtime.types import Array


class Step:
    """One token of each of some rows.

    Between two steps the caches are full of weights, so that each line of Python or numpy comes
    from memory again. What changes is therefore written at once: two arrays that inputs are parts
    of.

    Args:
        feeds: The program's inputs; those that change are replaced.
        written: Its outputs.

    Attributes:
        feeds: The inputs, to be given with each step.
        written: The outputs.
    """

    def __init__(self, feeds: dict[str, Array], written: dict[str, Array]) -> None:
        ids, positions = feeds["input_ids"], feeds["position_ids"]
        rows = ids.size
        self._axes = positions.size // rows
        self._numbers = np.zeros((1 + self._axes) * rows, np.int64)
        self._ends = np.zeros(rows + 1, np.int32)
        self.feeds = feeds | {
            "input_ids": self._numbers[:rows].reshape(ids.shape),
            "position_ids": self._numbers[rows:].reshape(positions.shape),
            "sequence_lengths": self._ends[:rows],
            "total_length": self._ends[rows:].reshape(()),
        }
        self.written = written

    def fill(self, tokens: Sequence[int], positions: Sequence[int], lengths: Sequence[int]) -> None:
        """Writes each row's token, its position on every axis, and its cache's length before."""
        self._numbers[:] = [*tokens, *[*positions] * self._axes]
        ends = [length + 1 for length in lengths]
        self._ends[:] = [*ends, max(ends)]
