"""Values the runner hands out: what a pass made, what it cost, what to tell the user."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from vlmc.bundle.manifest import FileEntry

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What one pass cost this build.

    Attributes:
        name: The pass.
        seconds: Time spent on it here; next to nothing on a hit.
        hit: Whether its result came from the cache (or was not needed at all).
        size: Bytes of its result.
        peak: Most memory this process has held so far, in bytes.
        key: The cache key.
    """

    name: str
    seconds: float
    hit: bool
    size: int
    peak: int
    key: str


@dataclass(frozen=True)
class Event:
    """Something to tell the user: a pass starts, is done, or something is worth a line.

    Attributes:
        kind: ``started`` (not on a hit that was known at once), ``finished`` (with ``record``),
            ``notice``.
        step: The pass.
        message: The line of a notice.
        record: Of a finished pass.
    """

    kind: Literal["started", "finished", "notice"]
    step: str
    message: str = ""
    record: Record | None = None


@dataclass(frozen=True)
class Artifact:
    """The files a pass made; they are the cache's own and must not be changed.

    Attributes:
        folder: Where they lie.
        digest: Over the paths and contents of all of them, and nothing else.
        files: Digest and size of each, by path.
        seconds: What this build spent on it.
        hit: Whether it came from the cache.
        key: The cache key.
    """

    folder: Path
    digest: str
    files: dict[str, FileEntry]
    seconds: float
    hit: bool
    key: str


@dataclass(eq=False)
class Lazy(Generic[T]):
    """A value that cannot be stored: made when a later pass that misses the cache asks for it.

    Attributes:
        digest: Stands for the value in the keys of later passes; its pass's own key.
    """

    digest: str
    _make: Callable[[], T]
    _made: list[T] = field(default_factory=list)

    def value(self) -> T:
        """The value; made on the first call, the same one afterwards."""
        if not self._made:
            self._made.append(self._make())
        return self._made[0]


Input = str | Artifact | Lazy[Any]
