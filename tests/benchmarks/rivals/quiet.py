"""A machine of one's own while something is measured, where others can be asked to stop."""

from __future__ import annotations

import shlex
import subprocess
import time
from types import TracebackType
from typing import Self


class Quiet:
    """Keeps a command running for as long as something is measured.

    The command is given a child to run, keeps the machine quiet while that child lives, and may
    put an end to it when it takes too long; what was measured meanwhile does not count.

    Args:
        command: As typed in a shell; None: nothing is asked for.
        longest: Seconds after which ``turn`` lets the others work.
    """

    def __init__(self, command: str | None, longest: float) -> None:
        self._words = shlex.split(command or "")
        self._longest = longest
        self._holder: subprocess.Popen[bytes] | None = None
        self._since = 0.0

    def __enter__(self) -> Self:
        if self._words:
            child = ["sh", "-c", "echo; read _; :"]
            self._holder = subprocess.Popen(
                [*self._words, *child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._holder.stdout is not None
            self._holder.stdout.readline()
        self._since = time.monotonic()
        return self

    def turn(self) -> None:
        """Between two measurements: lets others work for a moment when it is time."""
        if self._words and time.monotonic() - self._since > self._longest:
            self.__exit__(None, None, None)
            time.sleep(1)
            self.__enter__()

    @property
    def kept(self) -> bool:
        """Whether the machine is quiet still."""
        return self._holder is None or self._holder.poll() is None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._holder is not None:
            self._holder.communicate()
            self._holder = None
