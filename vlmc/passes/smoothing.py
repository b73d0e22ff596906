"""Which factors make one fold's layers lose least, by trial on what the layers were seen to read.

A layer of int8 weights reads 8-bit activations with one scale a token, so a channel far larger
than the others takes the steps of all others; a factor moves its range into the weights, which
have a scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.passes.scaling import Fold
from vlmc.quantizers import QUANTIZERS
from vlmc.quantizers.blocks import join, split

Array = NDArray[Any]

# Half of a channel's range moves into the weights: of outliers first, then of every channel. A
# fold must take a third off the error, for less may be the questions' own, and lost on others.
_SHARE = 0.5
_LEAST = (2, 1)
_CLEARLY = 2 / 3
# A factor of 2 ** 20 would serve no purpose but to run out of exponents.
_LARGEST = 20


@dataclass(frozen=True)
class Seen:
    """What layers read during calibration, over all tokens.

    Attributes:
        level: float64 ``[K]``: mean of a channel's absolute value, of tokens scaled to a root
            mean square of 1: so one odd token weighs as much as any other.
        tokens: float32 ``[T, K]``: some of them, as they were.
    """

    level: Array
    tokens: Array


@dataclass(frozen=True)
class Smoothed:
    """Exponents int64 ``[channels]`` of a fold, and the layers' errors without and with them."""

    exponents: Array
    before: float
    after: float


def smooth(fold: Fold, seen: Seen, weights: Sequence[Array], form: str, block: int) -> Smoothed:
    """The best exponents found for one fold.

    Args:
        fold: Whose consumers read what was ``seen``.
        seen: By its consumers.
        weights: Of each consumer, some rows, float32 ``[n, K]``.
        form: Their storage format.
        block: Columns per block, for formats that have blocks.
    """
    columns = sum(map(_column_squares, weights))
    ratio = _relative(_channels(fold, seen.level)) / _relative(_channels(fold, np.sqrt(columns)))
    expected = [_product(seen.tokens, w) for w in weights]

    def error(exponents: Array) -> float:
        factors = np.ldexp(np.float32(1), fold.spread(exponents))
        read = _read(seen.tokens / factors, form, block)
        restored = (_restored(w * factors, form, block) for w in weights)
        pairs = zip(expected, restored, strict=True)
        return float(np.mean([_error(_product(read, w), there) for there, w in pairs]))

    best = np.zeros(fold.channels, np.int64)
    before = after = error(best)
    for least in _LEAST:
        tried = np.clip(np.rint(_SHARE * np.log2(ratio)), -_LARGEST, _LARGEST).astype(np.int64)
        tried[np.abs(tried) < least] = 0
        found = error(tried) if tried.any() else before
        if found < after * _CLEARLY:
            best, after = tried, found
    return Smoothed(best, before, after)


def _product(tokens: Array, weight: Array) -> Array:
    """By torch, which keeps to this thread's own share of the processors, as numpy does not."""
    import torch

    made: Array = (torch.from_numpy(tokens) @ torch.from_numpy(weight).T).numpy()
    return made


def _column_squares(weight: Array) -> Array:
    """Of each column the mean square, over that of all."""
    squares: Array = np.square(weight, dtype=np.float64).mean(axis=0)
    return squares / (float(squares.mean()) or 1.0)


def _channels(fold: Fold, columns: Array) -> Array:
    """``[columns]`` -> the mean for each channel over the columns that read it."""
    mean: Array = columns.reshape(fold.heads, fold.group, fold.size).mean(axis=1).reshape(-1)
    return mean


def _relative(values: Array) -> Array:
    """Over the median; 1 where a channel is never used."""
    used = values[values > 0]
    middle = np.median(used) if len(used) else 1.0
    return np.where(values > 0, values / middle, 1.0)


def _read(tokens: Array, form: str, block: int) -> Array:
    """Tokens as a layer reads them: 8 bits, one scale for each, or for each of its blocks."""
    cut = tokens[:, None] if form == "int8_channel" else split(tokens, block)
    scale = np.maximum(np.abs(cut).max(axis=2, keepdims=True), 1e-12) / np.float32(127)
    return join(np.rint(cut / scale) * scale, tokens.shape[1])


def _restored(weight: Array, form: str, block: int) -> Array:
    quantizer = QUANTIZERS[form]
    if quantizer.rounded and (found := quantizer.rounded(weight, block)) is not None:
        return found
    known = quantizer.measured(weight, block) if quantizer.measured else None
    stored = known[0] if known else quantizer.quantize(weight, block)
    return quantizer.restore(stored, weight.shape[1], block)[: len(weight)]


def _error(found: Array, expected: Array) -> float:
    """Root mean square over tokens of each one's relative error."""
    wrong = np.square(found - expected, dtype=np.float64).sum(axis=1)
    total = np.square(expected, dtype=np.float64).sum(axis=1)
    used = total > 0
    return float(np.sqrt((wrong[used] / total[used]).mean())) if used.any() else 0.0
