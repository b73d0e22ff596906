"""Files of a pass's result, copied out of the cache beside other work."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import IO

import numpy as np

from vlmc.backends.threads import step_back
from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.workspace.values import Artifact

_AT_ONCE, _BLOCK, _COMPARED = 64 << 20, 4 << 20, 512 << 10


@dataclass(frozen=True)
class Copies:
    """An artifact's files on their way to a folder.

    Attributes:
        artifact: The artifact.
        target: The folder.
        right: Whether each has arrived as it should be, in the order of ``artifact.files``.
        stopping: Set when they are not wanted any more.
    """

    artifact: Artifact
    target: Path
    right: tuple[Future[bool], ...]
    stopping: Event

    def stop(self) -> None:
        """Returns once nothing is written any more; some files may be there."""
        self.stopping.set()
        for copy in self.right:
            copy.cancel()
        wait(self.right)


def begin_copies(artifact: Artifact, target: Path, *, sound: bool = False) -> Copies:
    """Copies an artifact's files below ``target`` and reads every byte back, in threads.

    Args:
        artifact: The artifact.
        target: The folder.
        sound: Its files are known to be right (``Workspace.knows``), so that to compare with
            them is enough, which takes a third of the time that digests take.

    Never hard links: whoever edits the bundle would edit the cache, and so every later
    bundle. The copy is made by the kernel, which shares the blocks until one side is
    written where the file system can (btrfs, xfs), so large weights cost nothing there.
    """
    # One is hashed while the other is copied. What runs beside this goes first.
    pool = ThreadPoolExecutor(2, initializer=step_back)
    stopping = Event()
    right = tuple(
        pool.submit(copied, artifact.folder / path, target / path, entry, stopping, sound=sound)
        for path, entry in artifact.files.items()
    )
    pool.shutdown(wait=False)
    return Copies(artifact, target, right, stopping)


def copied(
    source: Path, target: Path, expected: FileEntry, stopping: Event, *, sound: bool = False
) -> bool:
    """Copies a file; false, and no copy, if it is not what it should be, or stopped."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        right = _copy(source, target, _Same(source) if sound else _Hashed(), expected, stopping)
    except OSError as error:
        if source.is_file():
            raise VlmcError(f"cannot write: {error.strerror}", at=str(target)) from error
    else:
        if right and not stopping.is_set():
            return True
    target.unlink(missing_ok=True)
    return False


class _Hashed:
    """A copy read back, held to the digest it should have."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()

    def read(self, back: RawIOBase) -> None:
        """Reads what there is."""
        while block := back.read(_BLOCK):
            self._whole.update(block)

    def right(self, expected: FileEntry) -> bool:
        """Whether that was the whole file."""
        return self._whole.hexdigest() == expected.sha256


class _Same:
    """A copy read back, held to the file it was made from."""

    def __init__(self, source: Path) -> None:
        self._source, self._same = source, True
        # To where pages begin: 16 bytes further on some CPUs copy five times as slowly (Zen 3).
        room = mmap.mmap(-1, 2 * _COMPARED)
        self._copy, self._first = np.frombuffer(room, np.uint8).reshape(2, -1)

    def read(self, back: RawIOBase) -> None:
        """Reads what there is."""
        with self._source.open("rb", buffering=0) as file:
            file.seek(back.tell())
            while count := back.readinto(self._copy.data):
                copy, first = self._copy[:count], self._first[:count]
                self._same &= file.readinto(first.data) == count and np.array_equal(copy, first)

    def right(self, expected: FileEntry) -> bool:
        """Whether all of it was the same."""
        return self._same


def _copy(
    source: Path, target: Path, check: _Hashed | _Same, expected: FileEntry, stopping: Event
) -> bool:
    """Copies a file inside the kernel, sharing blocks where the file system can.

    Returns:
        Whether it arrived: read back as it grows, as later it might have to come from the disk.
    """
    grown = SimpleQueue[int]()
    with (
        source.open("rb") as read,
        target.open("wb", buffering=0) as write,
        target.open("rb", buffering=0) as back,
    ):

        def copy() -> None:
            try:
                while not stopping.is_set() and (size := _copy_some(read, write)):
                    grown.put(size)
            finally:
                grown.put(0)

        # A large file is waited for in the end, so two cores work at it.
        with ThreadPoolExecutor(1, initializer=step_back) as beside:
            copying = beside.submit(copy)
            while grown.get():
                check.read(back)
            copying.result()
        size = back.tell()
        if not stopping.is_set():
            os.fsync(write.fileno())  # here nobody waits for it
    return size == expected.size and check.right(expected)


def _copy_some(read: IO[bytes], write: IO[bytes]) -> int:
    """Copies on from where the files are; 0 at the end."""
    if hasattr(os, "copy_file_range"):  # Linux only
        try:
            return os.copy_file_range(read.fileno(), write.fileno(), _AT_ONCE)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
    block = os.read(read.fileno(), _BLOCK)
    left = memoryview(block)
    while left:
        left = left[os.write(write.fileno(), left) :]
    return len(block)
