"""What a backend is: it lowers a program at build time and opens it where it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from vlmc.backends.together import Together
from vlmc.bundle.manifest import ProgramSpec
from vlmc.schema import Json, Split

Array = NDArray[Any]
# A build runs a larger bundle with few of its weights in memory (``OpenOptions.pieces``), so that
# to check takes no more of it than to build.
WHOLE_BYTES = 512 << 20


class SessionError(RuntimeError):
    """A program failed while it ran: not a user's mistake, and not the end of other requests."""


class Session(Protocol):
    """An opened program."""

    @property
    def kernels(self) -> str:
        """What computes it, for a reader: an engine's name, and the kernels' where it has some."""

    @property
    def portable(self) -> str:
        """Why a program's faster file was not opened; empty where it was, or there is none."""

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Runs the program once.

        Mappings that the last run was given too, the same objects, must hold the same arrays: then
        nothing but what the arrays hold has to be looked at.

        Args:
            feeds: Every input by name, with the dtypes and dimensions of the ``ProgramSpec``.
            into: Outputs to write into memory of the caller's, C-contiguous and of the exact
                shape. An array may be fed and written at once: the program then works on it
                in place, as attention does on its key-value cache.

        Returns:
            The outputs that are not in ``into``.

        Raises:
            SessionError: The program failed.
        """
        ...


@dataclass(frozen=True)
class OpenOptions:
    """How a program is opened.

    Attributes:
        threads: Threads of one run, the caller's included.
        spin: Threads wait for work busily during a run: a shorter step, more CPU time.
        shrink: Memory taken by a run is given back after it, where the backend can and it is
            much: for programs that run rarely, as a vision tower does.
        portable: Use the program that runs on every machine, whatever this one has.
        strict: Kernels that this machine has must know all that the faster program asks of them;
            otherwise the portable one steps in, as it should for a bundle from elsewhere.
        pieces: Hold a small part of the weights at a time, whatever it costs in speed; a build
            checks bundles larger than its own memory so. Threads that share it run together. The
            faster program only where its weights need not be copied to be read.
    """

    threads: int
    spin: bool = True
    shrink: bool = False
    portable: bool = False
    strict: bool = False
    pieces: Together | None = None


@dataclass(frozen=True)
class StoredPart:
    """One stored tensor: where its bytes lie, relative to the bundle's folder."""

    name: str
    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredWeight:
    """A weight [rows, columns] in a storage format.

    Attributes:
        format: One of the backend's ``accepts``.
        rows: Output channels, or entries of a table.
        columns: Elements of a row.
        block: Columns per block, for formats that have blocks.
        parts: The stored tensors by the suffix of their name; "" is the main one.
    """

    format: str
    rows: int
    columns: int
    block: int
    parts: Mapping[str, StoredPart]


@dataclass(frozen=True, order=True)
class Product:
    """A shape of product: activations [tokens, inputs] and a stored weight [outputs, inputs]."""

    format: str
    inputs: int
    outputs: int

    @classmethod
    def of(cls, weight: StoredWeight) -> Product:
        """The product that a weight is part of."""
        return cls(weight.format, weight.columns, weight.rows)


@dataclass(frozen=True)
class Backend:
    """One row of ``BACKENDS``.

    Attributes:
        name: The key of the row and the word in the recipe.
        open: ``(bundle folder, program, options) -> Session``; raises ``VlmcError`` for a
            program that is broken, reaches outside its bundle or does not match its spec.
        lower: ``(neutral graphs by name, weights by parameter name, split, folder, slower)``
            writes the programs as ``programs/NAME.onnx`` under the folder; ``slower`` are the
            products that the kernels of the second files should leave to the engine.
        measure: ``(graphs, weights, folder of the weights, numbers of tokens, threads)`` times
            each product on this machine; one JSON object for each.
        hold_alike: ``(graphs, weights, folder of the weights, threads)`` multiplies one weight of
            each shape by both kinds of kernels; raises ``VlmcError`` where they differ.
        slower: Reads ``slower`` out of what ``measure`` gave.
        accepts: Storage formats of weights that ``lower`` knows.
        kernels_suffix: Of the second file of each program, ``programs/NAME<suffix>.onnx``, which
            needs more than every machine has and is faster; None: there is none.
        kernels: What our own kernels compute with on this machine; empty where they cannot.
        head_multiple: A head's keys and values take a multiple of this many numbers in the
            cache; ``lower`` fills up with zeros what the model's heads lack.
    """

    name: str
    open: Callable[[Path, ProgramSpec, OpenOptions], Session]
    lower: Callable[
        [Mapping[str, Path], Mapping[str, StoredWeight], Split, Path, frozenset[Product]], None
    ]
    measure: Callable[
        [Mapping[str, Path], Mapping[str, StoredWeight], Path, Sequence[int], int], list[Json]
    ]
    hold_alike: Callable[[Mapping[str, Path], Mapping[str, StoredWeight], Path, int], None]
    slower: Callable[[Sequence[Json]], frozenset[Product]]
    kernels: Callable[[], str]
    accepts: frozenset[str]
    head_multiple: int
    kernels_suffix: str | None = None
