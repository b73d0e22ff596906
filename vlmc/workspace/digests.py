"""What a pass's key and its result's digest are made of; sha256 throughout, never cut short."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from vlmc.bundle.manifest import FileEntry
from vlmc.bundle.store import canonical_json
from vlmc.errors import need


def files_digest(files: Mapping[str, FileEntry]) -> str:
    """One digest for many files: over the sorted lines ``<sha256>  <path>``."""
    lines = "".join(f"{files[path].sha256}  {path}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def json_digest(value: object) -> str:
    """The digest of the canonical JSON of a value.

    Raises:
        TypeError: Something in it is no JSON.
        ValueError: It holds NaN or an infinity.
    """
    return hashlib.sha256(canonical_json(value)).hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; ``python`` is the interpreter's.

    Raises:
        VlmcError: One of them is not installed.
    """
    versions = {}
    for name in sorted(set(names)):
        try:
            versions[name] = (
                platform.python_version() if name == "python" else importlib.metadata.version(name)
            )
        except importlib.metadata.PackageNotFoundError as error:
            raise need(name, "build") from error
    return versions


def code_digest(modules: Iterable[str]) -> str:
    """The digest of the source text of modules and of all they import from their own package.

    Imports inside functions count. A module forgotten here would let an old result pass for a
    new one, so nothing is left to be listed by hand.

    Raises:
        ModuleNotFoundError: A module does not exist.
    """
    texts: dict[str, str] = {}
    waiting = sorted(set(modules))
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        path = _source(name)
        if path is None:
            raise ModuleNotFoundError(name, name=name)
        texts[name] = path.read_text("utf-8")
        top = name.partition(".")[0]
        for found in _imports(texts[name]):
            if found.partition(".")[0] == top and found not in texts and _source(found):
                waiting.append(found)
    return json_digest(texts)


@functools.cache
def _imports(text: str) -> frozenset[str]:
    """Every module a source's import statements may name; ``from a import b`` may name ``a.b``.

    Kept by text: passes share most modules, and to parse them takes longer than a cached build.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(str(module), names, 0):
                found.add(module)
                found.update(f"{module}.{alias.name}" for alias in names)
    return frozenset(found)


def _source(module: str) -> Path | None:
    """The file of a module, or None where there is none of that name; nothing is imported."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin)
    if rest and place.name != "__init__.py":
        return None
    place = place.parent.joinpath(*rest) if rest else place
    for found in (place.with_suffix(".py"), place / "__init__.py"):
        if found.is_file():
            return found
    return None
