"""Large files hashed by a process of their own: ``python -m vlmc.sources.apart``.

A thread that hashes beside one that runs Python waits for the interpreter after each block, and
makes the other one wait: both took a fifth longer.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vlmc.errors import VlmcError
from vlmc.sources.folder import SourceFolder
from vlmc.sources.hashes import digests, remembered

# To start a process takes as long as to hash half of that.
_LARGE_BYTES = 1 << 30
_REFUSED = 2


def digests_apart(
    source: SourceFolder, names: Sequence[str], *, cache: Path | None
) -> dict[str, str]:
    """As ``digests``; what takes long is done by another process.

    Raises:
        VlmcError: A file cannot be read, or the process was stopped.
    """
    left = [name for name in names if remembered(source.folder / name, cache) is None]
    sizes = [path.stat().st_size for name in left if (path := source.folder / name).is_file()]
    if sum(sizes) < _LARGE_BYTES:
        return digests(source, names, cache=cache)
    command = [sys.executable, "-m", __name__, str(source.folder), str(cache or ""), *left]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == _REFUSED:
        return digests(source, names, cache=cache)  # says why, if it is still so
    if done.returncode:
        cut = done.returncode == -signal.SIGBUS  # of a mapped file
        why = "one was cut short while it was read" if cut else done.stderr.strip()
        raise VlmcError(f"the files were not hashed: {why}", at=str(source.folder))
    found: dict[str, str] = json.loads(done.stdout)
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
