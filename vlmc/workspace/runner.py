"""The runner around the passes: it times, digests, caches, resumes and reports; passes do not."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.machine import peak_memory
from vlmc.schema import Json
from vlmc.workspace.copies import Copies, copied
from vlmc.workspace.digests import code_digest, json_digest, library_versions
from vlmc.workspace.store import DamagedError, Result, Store, filling
from vlmc.workspace.values import Artifact, Event, Input, Lazy, Record

T = TypeVar("T")
# What a pass may return: files that it hashed while it wrote them, by path in its folder.
Made = Mapping[str, FileEntry] | None


@dataclass(frozen=True)
class _Pass:
    """How to make a result again, should its cached copy turn out to be damaged."""

    name: str
    place: int  # of its record
    key: str
    made_from: Json
    inputs: tuple[Input, ...]
    fn: Callable[[Path], Made]


class Workspace:
    """Runs passes over a cache folder.

    On a hit, sizes are checked and small files hashed. Large files are hashed where their bytes
    matter: before another pass is made from them, and when they are copied to a bundle. What is
    found damaged is made again.

    Args:
        cache_root: The cache; made if absent. Builds may share it.
        progress: Told of every pass.
        thorough: Hash large files too on every hit.

    Raises:
        VlmcError: The cache folder cannot be written.
    """

    def __init__(
        self,
        cache_root: Path,
        progress: Callable[[Event], None] = lambda event: None,
        *,
        thorough: bool = False,
    ) -> None:
        self._store = Store(cache_root)
        self._progress = progress
        self._thorough = thorough
        self._records: list[Record] = []
        self._passes: dict[str, _Pass] = {}
        self._sound: set[str] = set()  # keys whose every byte this process wrote or hashed
        self._apart = 0.0  # seconds spent on passes inside other passes

    @property
    def records(self) -> tuple[Record, ...]:
        """What each pass cost, in the order of the passes."""
        return tuple(self._records)

    def step(
        self,
        name: str,
        fn: Callable[[Path], Made],
        *,
        inputs: Sequence[Input] = (),
        options: Json,
        libraries: Sequence[str] = (),
        code: Sequence[str] | int,
    ) -> Artifact:
        """The files of a pass: from the cache, or made by ``fn`` now.

        Args:
            name: The pass.
            fn: Writes the result's files into the empty folder it is given; may return those
                that it has hashed, by path.
            inputs: Digests of all it reads, or the artifacts and lazy values themselves.
            options: All that steers it, as JSON.
            libraries: Distributions whose version changes its result.
            code: Its modules (what they import from their own package counts by itself), or a
                version number.

        Raises:
            VlmcError: The cache cannot be written, a library is missing; and what ``fn`` raises.
        """
        made_from = _made_from(name, inputs, options, libraries, code)
        key = json_digest(made_from)
        this = _Pass(name, len(self._records), key, made_from, tuple(inputs), fn)
        self._passes[key] = this
        self._records.append(Record(name, 0.0, True, 0, peak_memory(), key))
        result = self._run(this)
        record = self._records[this.place]
        return Artifact(
            self._store.folder(key), result.digest, result.files, record.seconds, record.hit, key
        )

    def holds(
        self,
        name: str,
        *,
        inputs: Sequence[Input] = (),
        options: Json,
        libraries: Sequence[str] = (),
        code: Sequence[str] | int,
    ) -> bool:
        """Whether the files of a pass are there, sound at first sight; arguments as in ``step``."""
        key = json_digest(_made_from(name, inputs, options, libraries, code))
        try:
            return self._store.find(key) is not None
        except DamagedError:
            return False

    def lazy(
        self,
        name: str,
        make: Callable[[], T],
        *,
        inputs: Sequence[Input] = (),
        options: Json,
        libraries: Sequence[str] = (),
        code: Sequence[str] | int,
    ) -> Lazy[T]:
        """A pass whose value lives in memory only; arguments as in ``step``.

        It counts as a hit until a later pass needs its value; then ``make`` is run and timed.
        """
        key = json_digest(_made_from(name, inputs, options, libraries, code))
        place = len(self._records)
        self._records.append(Record(name, 0.0, True, 0, peak_memory(), key))

        def timed() -> T:
            self._progress(Event("started", name))
            for given in inputs:
                self._ensure(given)
            with self._clock() as seconds:
                value = make()
            self._finish(place, Record(name, seconds[0], False, 0, peak_memory(), key))
            return value

        return Lazy(key, timed)

    def begins(self, name: str) -> None:
        """Tells of work for a pass that begins before its key is known."""
        self._progress(Event("started", name))

    def knows(self, artifact: Artifact) -> bool:
        """Whether this process wrote or hashed every byte of an artifact."""
        return artifact.key in self._sound

    def materialize(self, copies: Copies) -> dict[str, FileEntry]:
        """Waits until an artifact is copied, mends what did not arrive, and lists its files.

        Raises:
            VlmcError: The disk is full, or does not give back what was written to it.
        """
        artifact, target = copies.artifact, copies.target
        right = [copy.result() for copy in copies.right]
        if not all(right):
            self._sound.discard(artifact.key)
            self._ensure(artifact)
            wrong = [path for path, good in zip(artifact.files, right, strict=True) if not good]
            for path in wrong:
                entry = artifact.files[path]
                if not copied(artifact.folder / path, target / path, entry, copies.stopping):
                    raise VlmcError("the disk gives back other bytes than were written to it")
        return artifact.files

    def _run(self, this: _Pass, *, thorough: bool = False) -> Result:
        """The pass's entry, found or made; its record says which."""
        hit = True
        thorough = thorough or self._thorough
        with self._clock() as seconds:
            try:
                result = self._store.find(this.key, thorough=thorough)
            except DamagedError:
                result = None  # looked at again, and told of, under the lock
            if result is None:
                with self._store.lock(
                    this.key, lambda: self._notice(this, "another build is making it")
                ):
                    result = self._mend(this, thorough)
                    if result is None:
                        hit = False
                        result = self._build(this)
        if thorough or not hit:
            self._sound.add(this.key)
        size = sum(entry.size for entry in result.files.values())
        self._finish(this.place, Record(this.name, seconds[0], hit, size, peak_memory(), this.key))
        return result

    def _mend(self, this: _Pass, thorough: bool) -> Result | None:
        """The entry, now that nobody else is at it; a damaged one is removed."""
        try:
            return self._store.find(this.key, thorough=thorough)
        except DamagedError as damage:
            self._notice(this, f"the cached result is damaged ({damage}): it is made again")
            self._store.drop(this.key)
            return None

    def _build(self, this: _Pass) -> Result:
        self._progress(Event("started", this.name))
        for given in this.inputs:
            self._ensure(given)
        folder = self._store.start(this.key)
        try:
            with self._clock(whole=False) as seconds, filling(folder):
                hashed = this.fn(folder) or {}
            return self._store.finish(this.key, this.made_from, seconds[0], hashed)
        finally:
            self._store.abandon(this.key)  # nothing is there any more once it is finished

    def _ensure(self, given: Input) -> None:
        """Makes sure that every byte of an artifact is what it was when it was made."""
        if not isinstance(given, Artifact) or given.key in self._sound:
            return
        with suppress(DamagedError):
            if self._store.find(given.key, thorough=True):
                self._sound.add(given.key)
                return
        made = self._passes[given.key]
        if self._run(made, thorough=True).digest != given.digest:
            raise VlmcError(
                f"pass '{made.name}' does not give the same bytes twice",
                hint="run the build again",
            )

    @contextmanager
    def _clock(self, *, whole: bool = True) -> Iterator[list[float]]:
        """Seconds spent inside, without those of other passes that run in between.

        Args:
            whole: This is a whole pass, to be left out of the time of one around it.
        """
        seconds = [0.0]
        begun, before = time.perf_counter(), self._apart
        try:
            yield seconds
        finally:
            passed = time.perf_counter() - begun
            seconds[0] = passed - (self._apart - before)
            if whole:
                self._apart = before + passed

    def _notice(self, this: _Pass, message: str) -> None:
        self._progress(Event("notice", this.name, message))

    def _finish(self, place: int, record: Record) -> None:
        self._records[place] = record
        self._progress(Event("finished", record.name, record=record))


def _made_from(
    name: str,
    inputs: Sequence[Input],
    options: Json,
    libraries: Sequence[str],
    code: Sequence[str] | int,
) -> Json:
    """All that decides a pass's result, as JSON; its digest is the key."""
    return {
        "pass": name,
        "inputs": [given if isinstance(given, str) else given.digest for given in inputs],
        "options": options,
        "libraries": library_versions(libraries),
        "code": code if isinstance(code, int) else code_digest(code),
    }
