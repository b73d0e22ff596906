"""The one error a user sees: where, what was given, what is allowed, the nearest match."""

import difflib
from collections.abc import Iterable


class VlmcError(Exception):
    """A mistake the user can mend; the command line prints it without a traceback and exits 2.

    Args:
        message: What is wrong, as one sentence, with the value that was given.
        at: The place: a file and key path (``recipe.yaml: quantize.block``) or a flag.
        allowed: What would be accepted, in the order to show it.
        got: The value given; the nearest entry of ``allowed`` is suggested for it.
        hint: What to do about it, when a list of values cannot say it.
    """

    def __init__(
        self,
        message: str,
        *,
        at: str | None = None,
        allowed: Iterable[str] = (),
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.at = at
        self.allowed = tuple(str(value) for value in allowed)
        self.got = got
        self.hint = hint

    def located(self, at: str) -> "VlmcError":
        """The same error with ``at`` put before its own place."""
        place = f"{at}: {self.at}" if self.at else at
        return VlmcError(self.message, at=place, allowed=self.allowed, got=self.got, hint=self.hint)

    def __str__(self) -> str:
        lines = [f"{self.at}: {self.message}" if self.at else self.message]
        if self.allowed:
            lines.append(f"  allowed: {', '.join(self.allowed)}")
        if self.got is not None and (near := nearest(self.got, self.allowed)):
            lines.append(f"  did you mean '{near}'?")
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The entry of ``allowed`` closest to ``word``, or None when nothing is close."""
    found = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return found[0] if found else None


def need(package: str, extra: str) -> VlmcError:
    """The error for an optional package that is not installed."""
    return VlmcError(
        f"this needs '{package}', which is not installed",
        hint=f"pip install 'vlmc[{extra}]'",
    )
