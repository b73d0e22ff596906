"""What a quantizer is: a storage format for the weight of one linear layer or embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Part:
    """One stored tensor of a format.

    Attributes:
        suffix: Appended to the weight's name; "" for the main tensor.
        dtype: numpy name of the stored elements.
        shape: Shape of the whole tensor.
        row_axis: The axis along which the weight's rows (output channels) lie, so that a
            block of rows can be written alone.
        rows_each: Rows that lie in one place of that axis: such a block starts at a multiple.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    row_axis: int = 0
    rows_each: int = 1


@dataclass(frozen=True)
class Loss:
    """Sums over rows: squared error, squared weights, and the largest absolute error."""

    error: float = 0.0
    weight: float = 0.0
    largest: float = 0.0

    def plus(self, other: Loss) -> Loss:
        """The loss over both runs of rows."""
        return Loss(
            self.error + other.error,
            self.weight + other.weight,
            max(self.largest, other.largest),
        )


@dataclass(frozen=True)
class Quantizer:
    """One row of ``QUANTIZERS``; rows of a weight are quantized independently.

    Attributes:
        name: The storage format, and the key of the row; backends say which they accept.
        parts: ``(rows N, columns K, block) -> Part...`` stored for a weight [N, K].
        quantize: ``(float32 [n, K], block) -> one array per part`` for n of the N rows.
        restore: The inverse, ``(arrays, K, block) -> float32 [n, K]``, and behind them the rows
            that fill up a place; tests and checks use it.
        bits: Bits per element, scales left out.
        measured: ``quantize`` with what it lost, faster than to ``restore`` and compare; it takes
            bfloat16 too, as uint16, and gives None where this machine cannot. Of numbers that
            are not finite, the sum of squares is none either.
        rounded: What is restored of what ``quantize`` makes; None likewise.
    """

    name: str
    bits: int
    parts: Callable[[int, int, int], tuple[Part, ...]]
    quantize: Callable[[Array, int], tuple[Array, ...]]
    restore: Callable[[tuple[Array, ...], int, int], Array]
    measured: Callable[[Array, int], tuple[tuple[Array, ...], Loss] | None] | None = None
    rounded: Callable[[Array, int], Array | None] | None = None
