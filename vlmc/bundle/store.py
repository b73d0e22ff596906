"""Bundles on disk: read with every path checked, verified by digest, published whole."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from vlmc.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest
from vlmc.errors import VlmcError

MANIFEST = "manifest.json"
LATEST = "latest"
MANIFEST_LIMIT = 16 << 20  # bytes; a real manifest is some tens of KiB
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files are all present.

    Attributes:
        folder: The version folder, resolved: no symlink in it.
        manifest: Its ``manifest.json``.
    """

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """The place of a listed file.

        Raises:
            VlmcError: The manifest does not list ``name``.
        """
        if name not in self.manifest.files:
            raise VlmcError(f"the manifest lists no file '{name}'", at=str(self.folder))
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The bytes of a listed file; raises ``VlmcError`` for one that is not listed."""
        return self.path(name).read_bytes()


def canonical_json(value: object) -> bytes:
    """The one way this project writes hashed JSON: sorted keys, UTF-8, a newline at the end.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def manifest_bytes(manifest: Manifest) -> bytes:
    """``manifest.json`` as it stands on disk."""
    return canonical_json(manifest.model_dump(mode="json"))


def bundle_digest(values: Mapping[str, object], files: Mapping[str, FileEntry]) -> str:
    """The bundle's sha256: see ``Manifest``.

    Args:
        values: The manifest as JSON values; ``files``, ``digest`` and ``version`` are left out.
        files: Every other file of the bundle.
    """
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(f"{files[path].sha256}  {path}\n".encode())
    rest = {key: value for key, value in values.items() if key not in _DERIVED}
    whole.update(canonical_json(rest))
    return whole.hexdigest()


_DERIVED = ("files", "digest", "version")


def hash_file(path: Path) -> FileEntry:
    """Digest and size of one file, read in blocks."""
    whole = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            whole.update(block)
            size += len(block)
    return FileEntry(sha256=whole.hexdigest(), size=size)


def hash_files(paths: Sequence[Path]) -> list[FileEntry]:
    """``hash_file`` of each, two at a time: a core cannot keep up with the disk."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(hash_file, paths))


def read_bundle(path: Path) -> Bundle:
    """Opens a version folder, or a ``NAME`` folder (then its ``latest``).

    Sizes are checked, digests are not: see ``verify_digests``.

    Raises:
        VlmcError: Not a bundle, a manifest that is broken or of another schema version, a file
            that is missing, has another size, is no regular file, or lies outside the folder.
    """
    folder = path
    if not (path / MANIFEST).is_file() and (path / LATEST).exists():
        folder = path / LATEST
    if not (folder / MANIFEST).is_file():
        raise VlmcError(
            "not a bundle: a folder with a manifest.json, or a NAME folder with a 'latest'",
            at=str(path),
            hint="build one with `vlmc build RECIPE`",
        )
    folder = folder.resolve()
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError as error:
        raise VlmcError("its name is not text in UTF-8", at=ascii(str(folder))) from error
    if (folder / MANIFEST).is_symlink():
        raise VlmcError("manifest.json is a symlink", at=str(folder))
    manifest = _parse_manifest(folder / MANIFEST)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    _check_programs(manifest, folder)
    return Bundle(folder, manifest)


def verify_digests(bundle: Bundle) -> None:
    """Hashes every file and the manifest itself again.

    Raises:
        VlmcError: Something differs, is missing or is not listed; every finding is named.
    """
    found: list[str] = []
    manifest = bundle.manifest
    for name, entry in sorted(manifest.files.items()):
        path = bundle.folder / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif hash_file(path) != entry:
            found.append(f"{name}: its bytes are not the ones that were built")
    digest = bundle_digest(manifest.model_dump(mode="json"), manifest.files)
    whole = (manifest.digest, manifest.version) == (digest, digest[:12])
    if not whole or (bundle.folder / MANIFEST).read_bytes() != manifest_bytes(manifest):
        found.append(f"{MANIFEST}: its bytes are not the ones that were built")
    extra = sorted(set(_files_of(bundle.folder)) - set(manifest.files) - {MANIFEST})
    found += [f"{name}: not listed in the manifest" for name in extra]
    if found:
        raise VlmcError(
            f"{len(found)} of {len(manifest.files) + 1} files differ: " + "; ".join(found),
            at=str(bundle.folder),
            hint="copy the bundle again, or rebuild it",
        )


def _parse_manifest(path: Path) -> Manifest:
    if path.stat().st_size > MANIFEST_LIMIT:
        raise VlmcError("the manifest is larger than 16 MiB", at=str(path))
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VlmcError(f"the manifest is not JSON: {error}", at=str(path)) from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise VlmcError("the manifest has no schema_version", at=str(path))
    if version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise VlmcError(
            f"schema version {version} is {age} than the one this vlmc reads ({SCHEMA_VERSION})",
            at=str(path),
            hint="update vlmc" if age == "newer" else "rebuild the bundle with this vlmc",
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VlmcError(f"the manifest is broken: {first['msg']}", at=f"{path}: {place}") from error


def check_name(name: str) -> None:
    """Refuses a file name that could leave the bundle's folder on any system.

    Raises:
        VlmcError: ``name`` is absolute or holds ``..``, a backslash, a drive or a control
            character, or is not in its shortest form.
    """
    parts = name.split("/")
    plain = name.isprintable() and not any(mark in name for mark in '\\:*?"<>|')
    if not plain or not parts or any(part in ("", ".", "..") for part in parts):
        raise VlmcError(f"{name!r} is not a plain relative path", at=f"{MANIFEST}: files")
    if PurePosixPath(name).as_posix() != name or name == MANIFEST:
        raise VlmcError(f"{name!r} cannot be a file of a bundle", at=f"{MANIFEST}: files")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    check_name(name)
    place = folder
    for part in name.split("/"):
        place = place / part
        try:
            status = place.lstat()
        except FileNotFoundError as error:
            raise VlmcError(f"'{name}' is missing", at=str(folder)) from error
        if stat.S_ISLNK(status.st_mode):
            raise VlmcError(f"'{name}' goes through a symlink", at=str(folder))
    if not stat.S_ISREG(status.st_mode):
        raise VlmcError(f"'{name}' is not a regular file", at=str(folder))
    if status.st_size != entry.size:
        raise VlmcError(
            f"'{name}' has {status.st_size} bytes, the manifest says {entry.size}", at=str(folder)
        )


def _check_programs(manifest: Manifest, folder: Path) -> None:
    expected = {"dual": {"vision", "language"}, "single": {"model"}}[manifest.split]
    if set(manifest.programs) != expected:
        raise VlmcError(
            f"split '{manifest.split}' needs the programs {sorted(expected)}, "
            f"the manifest has {sorted(manifest.programs)}",
            at=str(folder),
        )
    for name, program in manifest.programs.items():
        kernels = () if program.kernels is None else (program.kernels,)
        for file in (program.file, *kernels, *program.weights):
            if file not in manifest.files:
                raise VlmcError(f"program '{name}' needs '{file}', not listed", at=str(folder))


def _files_of(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix()
