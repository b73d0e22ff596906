"""A whole program run in little memory: its kernels read the weights where the file is mapped."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.pieces import stored_bytes
from vlmc.backends.spec import Array, Session
from vlmc.backends.together import Call

if TYPE_CHECKING:
    import onnx

# Weights that onnxruntime's own operators may read, which copy and pack them.
_PACKED_BYTES = 128 << 20
# These read the rows they are asked for.
_LOOKUPS = {"Gather", "GatherND"}
# Mapped bytes that a process may hold before it gives all of them back; how often it looks.
HELD_BYTES, _SECONDS = 256 << 20, 0.005
_STATUS, _MAPS = Path("/proc/self/statm"), Path("/proc/self/maps")


def reads_in_place(file: Path) -> bool:
    """Whether nearly all weights of a program are read by kernels of vlmc, or looked up.

    Those never need more memory than the system has to spare: it may forget mapped pages.
    """
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    sizes = {tensor.name: stored_bytes(tensor) for tensor in graph.initializer}
    others = {
        name
        for node in _nodes(graph)
        if node.domain != DOMAIN and node.op_type not in _LOOKUPS
        for name in node.input
    }
    return sum(sizes.get(name, 0) for name in others) <= _PACKED_BYTES


class InPlaceSession:
    """See ``vlmc.backends.together.ManySession``; one call after the other.

    Args:
        session: The program, opened whole.
        files: Its weights.
    """

    def __init__(self, session: Session, files: Iterable[Path]) -> None:
        self._session = session
        self._files = {str(file.resolve()) for file in files}
        self.kernels, self.portable = session.kernels, session.portable

    def run_all(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        """See ``vlmc.backends.together.ManySession.run_all``."""
        with _giving_back(self._files):
            return [self._session.run(feeds, into) for feeds, into in calls]


@contextmanager
def _giving_back(files: set[str]) -> Iterator[None]:
    """Meanwhile, few mapped pages of these files count as this process's (Linux).

    They stay in the system's own memory while it has room, so to read them again costs little.
    """
    if not _MAPS.exists():
        yield
        return
    ranges, over = _mapped(files), Event()

    def watch() -> None:
        advise = ctypes.CDLL(None).madvise
        while not over.wait(_SECONDS):
            if int(_STATUS.read_bytes().split()[2]) * mmap.PAGESIZE > HELD_BYTES:
                for start, stop in ranges:
                    advise(*map(ctypes.c_size_t, (start, stop - start)), mmap.MADV_DONTNEED)

    watching = Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _mapped(files: set[str]) -> list[tuple[int, int]]:
    """Where these files are mapped: a page that is given back comes from the file again.

    One that was written to would be lost. Nothing writes to weights.
    """
    found = []
    for line in os.fsdecode(_MAPS.read_bytes()).splitlines():
        where, *_, path = line.split(maxsplit=5)
        if path in files:
            start, stop = (int(number, 16) for number in where.split("-"))
            found.append((start, stop))
    return found


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """A graph's nodes, and those of its branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
