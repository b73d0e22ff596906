"""Token ids back to text, all at once or as they come."""

import codecs
import itertools
import json
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer


class Stream(Protocol):
    """Turns ids into text as they come; the pieces joined are the whole decoding."""

    def push(self, id: int) -> str:
        """The text that is certain once ``id`` is known; may be empty."""

    def finish(self) -> str:
        """What was held back. Nothing is pushed after it."""


def clean_up(text: str) -> str:
    """No spaces before punctuation: transformers' ``clean_up_tokenization``."""
    for spaced, joined in _CLEAN_UPS:
        text = text.replace(spaced, joined)
    return text


_CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def open_stream(tokenizer: Tokenizer, special: frozenset[int], cleaned: bool) -> Stream:
    """A stream for one answer, special tokens left out.

    Byte-level decoders give text up to the last whole character. Decoders that treat token by
    token (Metaspace, WordPiece, sentencepiece's sequence with byte fallback, none at all) give
    it token by token, runs of byte tokens as one. Any other decoder's text comes at the end.

    Args:
        tokenizer: The model's.
        special: Ids to leave out.
        cleaned: Whether ``clean_up`` is applied to the text.
    """
    stream = _raw_stream(tokenizer, special)
    return _Cleaned(stream) if cleaned else stream


def _raw_stream(tokenizer: Tokenizer, special: frozenset[int]) -> Stream:
    decoder = _decoder(tokenizer)
    stages = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [stage["type"] for stage in stages]
    if kinds == ["ByteLevel"]:
        return _Bytes(tokenizer, special)
    anchor = _anchor(tokenizer, special)
    if anchor is not None:
        if kinds in ([], ["Metaspace"], ["WordPiece"]):
            return _Tokens(tokenizer, special, anchor)
        if (strip := _strip_after_local(stages)) is not None:
            return _Tokens(tokenizer, special, anchor, "ByteFallback" in kinds, strip)
    return _Whole(tokenizer, special)


def _decoder(tokenizer: Tokenizer) -> dict[str, Any] | None:
    if tokenizer.decoder is None:
        return None
    state: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return state


def _strip_after_local(stages: Sequence[dict[str, Any]]) -> tuple[str, int] | None:
    """``(character, count)`` taken off the text's start by a sequence that is local otherwise."""
    strip = (" ", 0)
    fused = False
    for stage in stages:
        kind = stage["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and strip[1] == 0 and stage["stop"] == 0:
            strip = (stage["content"], stage["start"])
        elif fused or kind not in ("Replace", "ByteFallback", "Strip"):
            return None
    return strip


def _anchor(tokenizer: Tokenizer, special: frozenset[int]) -> tuple[int, str] | None:
    """A plain word to decode after, so that a token is not taken for the first one."""
    for id in range(tokenizer.get_vocab_size()):
        token = tokenizer.id_to_token(id)
        if token and token.isascii() and token.isalnum() and id not in special:
            return id, tokenizer.decode([id], skip_special_tokens=False)
    return None


def _alphabet() -> str:
    """Byte-level BPE's characters: printable bytes stand for themselves, others above U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


_BYTES = codecs.charmap_build(_alphabet())


class _Bytes:
    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        token = None if id in self._special else self._tokenizer.id_to_token(id)
        if token is None:
            return ""
        try:
            coded, _ = codecs.charmap_encode(token, "strict", _BYTES)
        except UnicodeEncodeError:  # outside the alphabet (an added one): it is text already
            coded = token.encode()
        return self._text.decode(coded)

    def finish(self) -> str:
        return self._text.decode(b"", final=True)


class _Tokens:
    def __init__(
        self,
        tokenizer: Tokenizer,
        special: frozenset[int],
        anchor: tuple[int, str],
        byte_runs: bool = False,
        strip: tuple[str, int] = (" ", 0),
    ) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._anchor, self._anchor_text = anchor
        self._byte_runs = byte_runs
        self._content, self._strip = strip
        self._first_matters = not strip[1]
        self._run: list[int] = []
        self._begun = False

    def push(self, id: int) -> str:
        token = None if id in self._special else self._tokenizer.id_to_token(id)
        if token is None:
            return ""
        if self._byte_runs and _is_byte(token):
            self._run.append(id)
            return ""
        return self.finish() + self._text([id])

    def finish(self) -> str:
        run, self._run = self._run, []
        return self._text(run) if run else ""

    def _text(self, ids: list[int]) -> str:
        if not self._begun and self._first_matters:
            self._begun = True
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        self._begun = True
        after = self._tokenizer.decode([self._anchor, *ids], skip_special_tokens=False)
        text = after[len(self._anchor_text) :]
        while self._strip and text:
            if text[0] != self._content:
                self._strip = 0
                break
            text = text[1:]
            self._strip -= 1
        return text


def _is_byte(token: str) -> bool:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return False
    return all(character in "0123456789abcdefABCDEF" for character in token[3:5])


class _Whole:
    def __init__(self, tokenizer: Tokenizer, special: frozenset[int]) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids: list[int] = []

    def push(self, id: int) -> str:
        if id not in self._special:
            self._ids.append(id)
        return ""

    def finish(self) -> str:
        ids, self._ids = self._ids, []
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class _Cleaned:
    """Cleans up to the last place that no later text can change.

    That is a space after a letter or digit, ``n`` left out: no pattern of ``clean_up`` holds
    such a pair, and of the words before, only a lone ``n`` could join what follows.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = ""

    def push(self, id: int) -> str:
        return self._release(self._stream.push(id))

    def finish(self) -> str:
        text, self._held = self._held + self._stream.finish(), ""
        return clean_up(text)

    def _release(self, text: str) -> str:
        start = max(len(self._held), 1)
        self._held += text
        for cut in range(len(self._held) - 1, start - 1, -1):
            before = self._held[cut - 1]
            if self._held[cut] == " " and before.isalnum() and before != "n":
                ready, self._held = self._held[:cut], self._held[cut:]
                return clean_up(ready)
        return ""
