"""Files of a pass's result, copied out of the cache beside other work."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import IO

from vlmc.backends.threads import step_back
from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.workspace.values import Artifact

_AT_ONCE, _BLOCK = 64 << 20, 4 << 20


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


def begin_copies(artifact: Artifact, target: Path) -> Copies:
    """Copies an artifact's files below ``target`` and reads every byte back, in threads.

    Never hard links: whoever edits the bundle would edit the cache, and so every later
    bundle. The copy is made by the kernel, which shares the blocks until one side is
    written where the file system can (btrfs, xfs), so large weights cost nothing there.
    """
    # One is hashed while the other is copied. What runs beside this goes first.
    pool = ThreadPoolExecutor(2, initializer=step_back)
    stopping = Event()
    right = tuple(
        pool.submit(copied, artifact.folder / path, target / path, entry, stopping)
        for path, entry in artifact.files.items()
    )
    pool.shutdown(wait=False)
    return Copies(artifact, target, right, stopping)


def copied(source: Path, target: Path, expected: FileEntry, stopping: Event) -> bool:
    """Copies a file; false, and no copy, if it is not what it should be, or stopped."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _copy(source, target, stopping)
    except OSError as error:
        if source.is_file():
            raise VlmcError(f"cannot write: {error.strerror}", at=str(target)) from error
    else:
        if not stopping.is_set() and found == expected:
            return True
    target.unlink(missing_ok=True)
    return False


def _copy(source: Path, target: Path, stopping: Event) -> FileEntry:
    """Copies a file inside the kernel, sharing blocks where the file system can.

    Returns:
        What the copy is, read back as it grows: later it might have to come from the disk.
    """
    whole = hashlib.sha256()
    with (
        source.open("rb") as read,
        target.open("wb", buffering=0) as write,
        target.open("rb", buffering=0) as back,
    ):
        while not stopping.is_set() and _copy_some(read, write):
            while block := back.read(_BLOCK):
                whole.update(block)
        size = back.tell()
        if not stopping.is_set():
            os.fsync(write.fileno())  # here nobody waits for it
    return FileEntry(sha256=whole.hexdigest(), size=size)


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
