"""The cache on disk: finished results by key, each written once and whole."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vlmc.bundle.manifest import FileEntry, Sha256
from vlmc.bundle.store import canonical_json, hash_files
from vlmc.errors import VlmcError
from vlmc.schema import Frozen, Json
from vlmc.workspace.digests import files_digest

# Files up to this size are hashed each time their entry is used; larger ones when asked.
SMALL = 1 << 20


class Result(Frozen):
    """``result.json``: what a pass made, and from what.

    Attributes:
        schema_version: Of this file.
        key: The entry's own key.
        made_from: What the key is the digest of, to be read by people.
        files: Every file by its path below ``files/``.
        digest: ``files_digest`` of them.
        seconds: What the pass took.
    """

    schema_version: Literal[1] = 1
    key: Sha256
    made_from: Json
    files: dict[str, FileEntry]
    digest: Sha256
    seconds: float


class DamagedError(Exception):
    """An entry that is not what its ``result.json`` says; the reason is the message."""


class Store:
    """Entries of one cache folder.

    ``entries/<key>/`` holds ``result.json`` and ``files/``; ``partial/<key>/`` is where the
    holder of the lock ``locks/<key>`` builds it. A partial folder whose lock nobody holds is
    what a killed process left, and is removed.
    """

    def __init__(self, root: Path) -> None:
        self._entries = root / "entries"
        self._partial = root / "partial"
        self._locks = root / "locks"
        with writing(root):
            for folder in (self._entries, self._partial, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def folder(self, key: str) -> Path:
        """Where the files of a finished entry lie."""
        return self._entries / key / "files"

    def find(self, key: str, *, thorough: bool = False) -> Result | None:
        """The finished entry of that key, or None.

        Args:
            key: The pass's key.
            thorough: Hash every file, not the small ones only.

        Raises:
            DamagedError: The entry is there, but broken.
        """
        entry = self._entries / key
        if not entry.is_dir():
            return None
        try:
            result = Result.model_validate_json((entry / "result.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise DamagedError("its result.json cannot be read") from error
        if result.key != key or result.digest != files_digest(result.files):
            raise DamagedError("its result.json was altered")
        if _listing(entry / "files") != sorted(result.files):
            raise DamagedError("a file is missing or was added")
        for path, expected in result.files.items():
            if _size(entry / "files" / path) != expected.size:
                raise DamagedError(f"{path} was altered")
        read = [p for p, there in result.files.items() if thorough or there.size <= SMALL]
        try:
            hashed = hash_files([entry / "files" / path for path in read])
        except OSError as error:
            raise DamagedError(f"{error.filename} cannot be read") from error
        for path, found in zip(read, hashed, strict=True):
            if found != result.files[path]:
                raise DamagedError(f"{path} was altered")
        return result

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Holds the key's lock, across processes; a holder that dies lets go.

        Args:
            key: The pass's key.
            waiting: Called once if another build holds it.
        """
        with writing(self._locks):
            file = os.open(self._locks / key, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would leave the lock to a forked child that still has the file.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def start(self, key: str) -> Path:
        """An empty folder to build the entry's files in; the key's lock must be held."""
        partial = self._partial / key
        with writing(partial):
            _remove(partial)
            (partial / "files").mkdir(parents=True)
        return partial / "files"

    def finish(
        self, key: str, made_from: Json, seconds: float, hashed: Mapping[str, FileEntry]
    ) -> Result:
        """Makes what was built the key's entry, once it is safely on disk.

        Args:
            key: The pass's key.
            made_from: All that decides its result.
            seconds: What it took.
            hashed: Files whose digests are known, by path.
        """
        partial, entry = self._partial / key, self._entries / key
        with writing(partial):
            listed = _listing(partial / "files")
            unknown = [path for path in listed if path not in hashed]
            entries = hash_files([partial / "files" / path for path in unknown])
            known = {**hashed, **dict(zip(unknown, entries, strict=True))}
            files = {path: known[path] for path in listed}
            result = Result(
                key=key,
                made_from=made_from,
                files=files,
                digest=files_digest(files),
                seconds=seconds,
            )
            (partial / "result.json").write_bytes(canonical_json(result.model_dump(mode="json")))
            for folder, _, names in os.walk(partial):
                for name in names:
                    _sync(Path(folder, name), read_only=True)
                _sync(Path(folder))
            os.rename(partial, entry)
            _sync(self._entries)
        return result

    def drop(self, key: str) -> None:
        """Removes a finished entry; the key's lock must be held."""
        # Moved away first: half an entry is never seen.
        gone = self._partial / key
        with writing(gone):
            _remove(gone)
            if not (self._entries / key).exists():
                return
            os.rename(self._entries / key, gone)
            _remove(gone)

    def abandon(self, key: str) -> None:
        """Removes what was being built; the key's lock must be held."""
        _remove(self._partial / key)

    def _sweep(self) -> None:
        """Removes what dead processes left half built."""
        for partial in sorted(self._partial.iterdir()):
            try:
                file = os.open(self._locks / partial.name, os.O_RDWR | os.O_CREAT, 0o644)
            except PermissionError:
                continue  # another user's, in a shared cache
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(partial)
            except BlockingIOError:
                continue  # its builder lives
            finally:
                os.close(file)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def writing(place: Path, errnos: tuple[int, ...] = (*_FULL, *_REFUSED)) -> Iterator[None]:
    """Turns a disk that is full, or not ours to write, into an error the user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno not in errnos:
            raise
        raise VlmcError(
            f"cannot write to the cache: {error.strerror}",
            at=str(error.filename or place),
            hint="name another folder with --cache or VLMC_CACHE, or make room there",
        ) from error


def filling(place: Path) -> AbstractContextManager[None]:
    """The same around other people's code, whose other errors are its own."""
    return writing(place, _FULL)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read") from error


def _listing(root: Path) -> list[str]:
    """Paths of all files below a folder, sorted, with forward slashes.

    Raises:
        ValueError: There is a link or a special file: a result holds its own bytes.
    """
    found = []
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ValueError(f"{path} is neither a file nor a folder")
        found += [Path(folder, name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def _sync(path: Path, *, read_only: bool = False) -> None:
    """Brings a file or folder to the disk; a finished file is no longer to be written."""
    file = os.open(path, os.O_RDONLY)
    try:
        if read_only:
            os.fchmod(file, 0o444)
        os.fsync(file)
    finally:
        os.close(file)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
