"""Stop strings: the answer ends before one, and nothing of it is ever streamed."""

from collections.abc import Sequence

from vlmc.errors import VlmcError

_MOST = 16
_LONGEST = 1024


class Stops:
    """Watches text as it comes; text that may still become a stop string is held back.

    Args:
        strings: What ends an answer; at most 16, none of them empty.

    Raises:
        VlmcError: Too many, an empty one, one over 1024 characters, or no string.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or len(strings) > _MOST:
            raise VlmcError(f"not a list of at most {_MOST} strings", at="stop")
        for string in strings:
            if not isinstance(string, str) or not 0 < len(string) <= _LONGEST:
                raise VlmcError(
                    f"{string!r} is not a text of 1 to {_LONGEST} characters", at="stop"
                )
        self._strings = tuple(strings)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Takes the next text; returns what may be shown and whether a stop string was met."""
        if not self._strings:
            return piece, False
        self._held += piece
        places = [place for string in self._strings if (place := self._held.find(string)) >= 0]
        if places:
            return self._held[: min(places)], True
        keep = max((_overlap(self._held, string) for string in self._strings), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def flush(self) -> str:
        """The text held back, when the answer has ended without a stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of ``text`` that begins ``string`` without being all of it."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if string.startswith(text[-n:])), 0)
