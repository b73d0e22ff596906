"""Powers of two moved from one weight into another: the same function, easier to quantize."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

FOLDS = "folds.json"


@dataclass(frozen=True)
class Producer:
    """What makes the channels of a fold: the parameter's rows from ``start`` on.

    Attributes:
        name: The parameter: a vector, or a matrix whose rows are output channels.
        start: The row of the first channel.
        offset: What the graph adds to the parameter before it multiplies with it (Gemma's 1).
    """

    name: str
    start: int = 0
    offset: float = 0.0


@dataclass(frozen=True)
class Fold:
    """Channels between two layers: those of the producers, read as columns by the consumers.

    A channel may be read several times, as a value head is by the query heads of its group:
    the columns are ``[heads, group, size]`` where the channels are ``[heads, size]``.

    Attributes:
        producers: Their rows are divided by a channel's factor.
        consumers: Matrices whose columns are multiplied by it.
        heads: Runs of channels that are repeated together; 1 where nothing is.
        group: How often.
        size: Channels in a run.
    """

    producers: tuple[Producer, ...]
    consumers: tuple[str, ...]
    heads: int
    group: int
    size: int

    @property
    def channels(self) -> int:
        """How many factors there are."""
        return self.heads * self.size

    @property
    def columns(self) -> int:
        """How many columns a consumer has."""
        return self.heads * self.group * self.size

    def spread(self, factors: Array) -> Array:
        """``[channels]`` -> ``[columns]``."""
        runs = factors.reshape(self.heads, 1, self.size)
        return np.broadcast_to(runs, (self.heads, self.group, self.size)).reshape(-1)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What becomes of one weight: ``w[i, j] * 2 ** (columns[j] - rows[i])``.

    Powers of two change exponents alone, so nothing is rounded (but with an ``offset``, where
    ``w + offset`` is what is scaled).

    Attributes:
        rows: int64 ``[N]``.
        columns: int64 ``[K]``, or None where all are 0.
        offset: As ``Producer.offset``.
    """

    rows: Array
    columns: Array | None = None
    offset: float = 0.0

    def apply(self, rows: Array, start: int) -> Array:
        """float32 ``[n, K]``, the rows from ``start`` on -> the same, scaled."""
        offset = np.float32(self.offset)
        scaled: Array = rows + offset
        scaled *= np.ldexp(np.float32(1), -self.rows[start : start + len(rows), None])
        if self.columns is not None:
            scaled *= np.ldexp(np.float32(1), self.columns)
        scaled -= offset
        return scaled


def write_folds(
    path: Path, folds: Iterable[tuple[Fold, Array]], facts: Mapping[str, object]
) -> None:
    """Writes folds with their exponents ``[channels]``, zeros left out, and facts to report."""
    described = [
        {
            "producers": [[p.name, p.start, p.offset] for p in fold.producers],
            "consumers": list(fold.consumers),
            "heads": [fold.heads, fold.group, fold.size],
            "exponents": [[int(at), int(exponents[at])] for at in np.flatnonzero(exponents)],
        }
        for fold, exponents in folds
    ]
    text = json.dumps({"folds": described, "facts": facts}, indent=1, sort_keys=True)
    path.write_text(text, encoding="utf-8")


def read_folds(path: Path) -> list[tuple[Fold, Array]]:
    """What ``write_folds`` wrote, but the facts."""
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["folds"]:
        heads, group, size = entry["heads"]
        producers = tuple(Producer(*values) for values in entry["producers"])
        fold = Fold(producers, tuple(entry["consumers"]), heads, group, size)
        exponents = np.zeros(fold.channels, np.int64)
        for at, exponent in entry["exponents"]:
            exponents[at] = exponent
        found.append((fold, exponents))
    return found


def read_facts(path: Path) -> dict[str, object]:
    """The facts ``write_folds`` wrote."""
    facts: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))["facts"]
    return facts


def scalings(folds: Iterable[tuple[Fold, Array]], rows: Mapping[str, int]) -> dict[str, Scaling]:
    """What the folds do to each parameter; ``rows`` says how many it has."""
    by_row: dict[str, Array] = {}
    by_column: dict[str, Array] = {}
    offsets: dict[str, float] = {}
    for fold, exponents in folds:
        for producer in fold.producers:
            there = by_row.setdefault(producer.name, np.zeros(rows[producer.name], np.int64))
            there[producer.start : producer.start + fold.channels] += exponents
            offsets[producer.name] = producer.offset
        for name in fold.consumers:
            by_column[name] = fold.spread(exponents)
    return {
        name: Scaling(
            by_row.get(name, np.zeros(rows[name], np.int64)),
            by_column.get(name),
            offsets.get(name, 0.0),
        )
        for name in sorted({*by_row, *by_column})
    }
