"""Writing a bundle: laid beside its target, sealed by its digest, renamed once."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vlmc.bundle.manifest import FileEntry, Manifest
from vlmc.bundle.store import (
    LATEST,
    MANIFEST,
    Bundle,
    bundle_digest,
    check_name,
    hash_file,
    manifest_bytes,
    read_bundle,
    verify_digests,
)
from vlmc.errors import VlmcError

_PARTIAL = ".partial-"

Draft = Mapping[str, object]


def write_bundle(
    out: Path,
    name: str,
    fill: Callable[[Path], Draft],
    known: Mapping[str, FileEntry] | None = None,
) -> Bundle:
    """Fills a folder and publishes it: see ``begin`` and ``publish``, whose errors it raises.

    Args:
        out: The artifacts folder; made when absent.
        name: The recipe's name: one path component.
        fill: Lays the bundle's files in the folder it is given, and returns the fields of
            ``Manifest`` but ``files``, ``digest`` and ``version``.
        known: See ``seal``.
    """
    with begin(out, name) as folder:
        return publish(folder, fill(folder), known)


@contextmanager
def begin(out: Path, name: str) -> Iterator[Path]:
    """A hidden folder beside the place of a bundle; gone afterwards unless it was published.

    So are the folders around it, where they were made for it and nothing else came into them.
    What a killed build left there is removed by the next one.

    Args:
        out: The artifacts folder; made when absent.
        name: The recipe's name: one path component.

    Raises:
        VlmcError: ``name`` is no file name, ``latest`` is something other than a symlink, or
            nothing can be written there.
    """
    if not name or name != Path(name).name or name.startswith(".") or name == LATEST:
        raise VlmcError(f"'{name}' cannot be the name of a bundle", at="name")
    home = out / name
    latest = home / LATEST
    if latest.exists() and not latest.is_symlink():
        raise VlmcError("'latest' exists and is not a symlink", at=str(latest), hint="move it away")
    missing = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        with ExitStack() as held:
            with writing(home):
                with _locked(home):
                    _sweep(home)
                folder = held.enter_context(_partial(home))
            yield folder
    finally:
        with suppress(OSError):  # something is in them
            for made in missing:
                made.rmdir()


def publish(folder: Path, draft: Draft, known: Mapping[str, FileEntry] | None = None) -> Bundle:
    """Makes a folder that ``begin`` gave ``out/NAME/VERSION/``, and points ``latest`` to it.

    A version that is there already is kept when its bytes are right, and replaced when they are
    not.

    Args:
        folder: The folder, filled.
        draft: See ``seal``.
        known: See ``seal``.

    Raises:
        VlmcError: A file's name or kind has no place in a bundle; the disk is full or not
            writable, and the target is left as it was.
    """
    home = folder.parent
    with writing(folder):
        manifest = seal(folder, draft, known)
        _sync(folder)
        target = home / manifest.version
        with _locked(home):
            _move(folder, target, manifest)
            _point(home / LATEST, manifest.version)
            _sync_folder(home)
            _sweep(home)
    return read_bundle(target)


def seal(folder: Path, draft: Draft, known: Mapping[str, FileEntry] | None = None) -> Manifest:
    """Hashes every file in ``folder`` and writes its ``manifest.json`` anew.

    A folder sealed this way opens with ``read_bundle``, before it is published too.

    Args:
        folder: The bundle's folder.
        draft: The manifest's fields, but those that the files decide.
        known: Files that the caller has hashed where they lie: not hashed again.

    Raises:
        VlmcError: A file's name or kind has no place in a bundle.
    """
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise VlmcError(f"'{name}' is not a regular file", at=str(folder))
        if path.is_file() and name != MANIFEST:
            check_name(name)
            there = (known or {}).get(name)
            same = there is not None and there.size == path.stat().st_size
            files[name] = there if there is not None and same else hash_file(path)
    manifest = _manifest(draft, files)
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    return manifest


def find_published(
    out: Path, name: str, draft: Draft, files: Mapping[str, FileEntry]
) -> Bundle | None:
    """The bundle of exactly these files, if it is there and whole; ``latest`` then points to it.

    Saves laying out a large bundle only to find that it is there.

    Args:
        out: The artifacts folder.
        name: The recipe's name.
        draft: As ``fill`` of ``write_bundle`` returns it.
        files: Every file that ``fill`` would lay, by path.
    """
    manifest = _manifest(draft, files)
    home = out / name
    if not _holds(home / manifest.version, manifest):
        return None
    with writing(home):
        _point(home / LATEST, manifest.version)
    return read_bundle(home / manifest.version)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Tells what the system refuses to write inside.

    Raises:
        VlmcError: The disk is full, or not ours to write.
    """
    try:
        yield
    except OSError as error:
        message = f"cannot write: {error.strerror}"
        raise VlmcError(message, at=str(error.filename or place)) from error


def _manifest(draft: Draft, files: Mapping[str, FileEntry]) -> Manifest:
    blank = {"files": dict(sorted(files.items())), "digest": "0" * 64, "version": ""}
    values = Manifest.model_validate({**draft, **blank})
    digest = bundle_digest(values.model_dump(mode="json"), values.files)
    return values.model_copy(update={"digest": digest, "version": digest[:12]})


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a folder's lock, which dies with the process; false: another process has it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its own build has just removed or renamed it
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


@contextmanager
def _partial(home: Path) -> Iterator[Path]:
    """A folder in ``home``, which is made when absent; locked while it is in use."""
    with ExitStack() as held:
        folder = None
        while folder is None:
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home):  # no sweep between making the folder and locking it
                try:
                    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
                except FileNotFoundError:  # a build that failed has just taken ``home`` away
                    continue
                held.callback(shutil.rmtree, folder, ignore_errors=True)
                held.enter_context(_locked(folder))
        folder.chmod(0o755)
        yield folder


def _sweep(home: Path) -> None:
    """Removes what killed builds left; ``home`` is locked."""
    for folder in home.glob(f"{_PARTIAL}*"):
        with _locked(folder, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path, manifest: Manifest) -> None:
    if _holds(target, manifest):
        return
    if target.exists() or target.is_symlink():
        # A later sweep takes the damaged one away, here or, if this build dies, in the next.
        os.rename(target, target.parent / f"{_PARTIAL}{manifest.version}-{os.getpid()}")
    os.rename(folder, target)


def _holds(target: Path, manifest: Manifest) -> bool:
    if not (target / MANIFEST).is_file():
        return False
    try:
        there = read_bundle(target)
        verify_digests(there)
    except VlmcError:
        return False
    if there.manifest.digest != manifest.digest:
        raise VlmcError(f"version {manifest.version} is taken by another bundle", at=str(target))
    return True


def _sync(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as stream:
                os.fsync(stream.fileno())
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(latest: Path, version: str) -> None:
    fresh = latest.with_name(f".{LATEST}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(version)
    os.replace(fresh, latest)
