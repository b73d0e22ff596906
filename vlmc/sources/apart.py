"""Large files hashed by a process of their own: ``python -m vlmc.sources.apart``.

A thread that hashes beside one that runs Python waits for the interpreter after each block, and
makes the other one wait: both took a fifth longer.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from vlmc.errors import VlmcError
from vlmc.sources.folder import SourceFolder
from vlmc.sources.hashes import digests, remembered

# To start a process takes as long as to hash half of that.
_LARGE_BYTES = 1 << 30
_REFUSED = 2


@contextmanager
def hashing_apart(
    source: SourceFolder, names: Sequence[str], *, cache: Path | None
) -> Iterator[Future[dict[str, str]]]:
    """Makes digests beside other work.

    Args:
        source: The files.
        names: Which of them.
        cache: Where digests are remembered; None: nowhere.

    Yields:
        What ``digests`` returns or raises. Whoever leaves without waiting for it, as after an
        error or an interrupt, has the process stopped.
    """
    started: list[subprocess.Popen[str]] = []
    left = Event()

    def begun(process: subprocess.Popen[str]) -> None:
        started.append(process)
        if left.is_set():
            process.kill()

    pool = ThreadPoolExecutor(1)
    try:
        yield pool.submit(digests_apart, source, names, cache=cache, started=begun)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        left.set()
        for process in started:
            process.kill()  # nothing, where it has ended


def digests_apart(
    source: SourceFolder,
    names: Sequence[str],
    *,
    cache: Path | None,
    started: Callable[[subprocess.Popen[str]], None] = lambda process: None,
) -> dict[str, str]:
    """As ``digests``; what takes long is done by another process, which ``started`` is given.

    Raises:
        VlmcError: A file cannot be read, or the process was stopped.
    """
    left = [name for name in names if remembered(source.folder / name, cache) is None]
    sizes = [path.stat().st_size for name in left if (path := source.folder / name).is_file()]
    if sum(sizes) < _LARGE_BYTES:
        return digests(source, names, cache=cache)
    command = [sys.executable, "-m", __name__, str(source.folder), str(cache or ""), *left]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        started(process)
        made, said = process.communicate()
    if process.returncode == _REFUSED:
        return digests(source, names, cache=cache)  # says why, if it is still so
    if process.returncode:
        cut = process.returncode == -signal.SIGBUS  # of a mapped file
        why = "one was cut short while it was read" if cut else said.strip()
        raise VlmcError(f"the files were not hashed: {why}", at=str(source.folder))
    found: dict[str, str] = json.loads(made)
    return digests(source, [n for n in names if n not in found], cache=cache) | found


def _main(folder: str, cache: str, *names: str) -> int:
    source = SourceFolder("local", None, Path(folder), names, name=folder)
    try:
        found = digests(source, names, cache=Path(cache) if cache else None, mapped=True)
    except VlmcError:
        return _REFUSED
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends threads that hash too
    sys.exit(_main(*sys.argv[1:]))
