"""Special tokens that a user's text spells, kept plain text.

Text is broken where it spells a special token, with characters no text may hold, before the
template sees it; so what the rendered prompt spells whole, the template wrote. Those places get
private forms, and a variant of the tokenizer knows the special tokens by their private forms
alone: whatever else spells one is text to it, like any other.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding, Tokenizer

from vlmc.errors import VlmcError

# Noncharacters: Unicode promises never to assign them, nor do they belong in exchanged text.
BREAK = "\ufdd0"
_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
_DIGITS = tuple(chr(0xFDE0 + digit) for digit in range(16))
_RESERVED = re.compile("[\ufdd0-\ufdef]")


@dataclass(frozen=True)
class Control:
    """A token that only the template may write."""

    id: int
    content: str
    normalized: bool

    @property
    def private(self) -> str:
        """Its form in the variant tokenizer."""
        return _OPEN + "".join(_DIGITS[int(digit, 16)] for digit in f"{self.id:x}") + _CLOSE


def find_controls(
    tokenizer: Tokenizer, named: Iterable[str], literals: str, words: Iterable[str] = ()
) -> tuple[Control, ...]:
    """The tokens that text must not become.

    These are the special tokens, those with a name (``named``: the image token, ``eos_token``),
    and the other added tokens that the template itself writes (``literals``), as
    transformers' ``_get_control_tokens`` has it. Other added tokens are words of the vocabulary;
    those among ``words`` count too.
    """
    names = set(named)
    added = tokenizer.get_added_tokens_decoder()
    ids = {tokenizer.token_to_id(word): word for word in words}
    plain = [Control(id, word, True) for id, word in ids.items() if id is not None]
    found = [
        Control(id, token.content, token.normalized)
        for id, token in sorted(added.items())
        if token.special
        or token.content in names
        or (token.content in literals and not token.content.isspace())
    ]
    return (*found, *(control for control in plain if control.id not in added))


class Guard:
    """Tells a template's special tokens from a text that spells them.

    Args:
        tokenizer: The model's own.
        controls: What ``find_controls`` says.
        texts: Other words that only the template may write, such as an image's placeholder.
    """

    def __init__(
        self, tokenizer: Tokenizer, controls: Sequence[Control], texts: Iterable[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._controls = {control.id: control for control in controls if control.content}
        contents = {*(c.content for c in self._controls.values()), *texts}
        spelled = sorted(contents, key=len, reverse=True)
        first = "".join(map(re.escape, sorted({content[0] for content in spelled})))
        alternatives = "|".join(map(re.escape, spelled))
        # The first characters alone decide at most places; there may be a thousand tokens.
        pattern = f"(?=[{first}])(?:{alternatives})" if spelled else "(?!)"
        self._spelled = re.compile(pattern, re.IGNORECASE)
        lower = {content.lower() for content in spelled}
        self._heads = {word[:end] for word in lower for end in range(1, len(word))}
        self._tails = {word[start:] for word in lower for start in range(1, len(word))}
        self._inner = "\0".join(sorted(lower))
        self._longest = max(map(len, spelled), default=0)
        # A normalizer may turn other texts ("<IMAGE>") into a normalized token's.
        self._through_normalizer = tokenizer.normalizer is not None and any(
            control.normalized for control in self._controls.values()
        )
        self._unknown = _unknown(tokenizer)
        self._variant: Tokenizer | None = None

    def broken(self, text: str) -> str:
        """``text`` with ``BREAK`` inside all that spells a control token, or could help to.

        A text whose end and the template's next words would spell one together is broken too.
        """
        result = self._spelled.sub(lambda match: _break(match.group()), text)
        if self._through_normalizer:
            found = self._tokenizer.encode(result, add_special_tokens=False)
            pieces, done = [], 0
            for start, end in self._places(found, result):
                pieces += [result[done:start], _break(result[start:end])]
                done = end
            result = "".join([*pieces, result[done:]])
        return self._broken_ends(result)

    def _broken_ends(self, text: str) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        end = start + len(core)
        if len(core) < self._longest and core.lower() in self._inner:
            return text[:start] + _break(core) + text[end:]
        sizes = range(min(self._longest - 1, len(core)), 0, -1)
        tail = next((n for n in sizes if core[-n:].lower() in self._heads), 0)
        head = next((n for n in sizes if core[:n].lower() in self._tails), 0)
        if tail:
            core = core[:-tail] + _break(core[-tail:])
        if head:
            core = _break(core[:head]) + core[head:]
        return text[:start] + core + text[end:]

    def ids(self, plain: str, broken: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a rendered prompt.

        Args:
            plain: It, rendered from the texts as they are.
            broken: It, rendered from the texts as ``broken`` returns them.
            add_special_tokens: Whether the tokenizer adds its own at the ends.

        Returns:
            The tokenizer's ids of ``plain``, where the texts spell no control token there.

        Raises:
            VlmcError: A text holds characters that are reserved for this work.
        """
        ours = self._tokenizer.encode(plain, add_special_tokens=add_special_tokens)
        if plain == broken and not self._through_normalizer:
            return list(ours.ids)
        truth = self._tokenizer.encode(broken, add_special_tokens=add_special_tokens)
        wanted = self._written(truth, broken)
        if self._written(ours, plain) == wanted:
            return list(ours.ids)
        if _RESERVED.search(plain):
            raise VlmcError(
                "a text spells a special token and holds a Unicode noncharacter (U+FDD0 to U+FDEF)",
                hint="remove the noncharacter",
            )
        return self._apart(truth, broken, wanted, add_special_tokens)

    def _apart(
        self, truth: Encoding, broken: str, wanted: list[int], add_special_tokens: bool
    ) -> list[int]:
        pieces: list[str] = []
        done = 0
        for id, (start, end) in self._found(truth, broken):
            control = self._controls[id]
            # The flags lstrip and rstrip take spaces along; they stay, for the variant to take.
            inside = broken[start:end].find(control.content)
            if inside >= 0:
                start, end = start + inside, start + inside + len(control.content)
            else:
                core = broken[start:end].strip()
                start = broken.index(core, start)
                end = start + len(core)
            pieces += [broken[done:start], control.private]
            done = end
        text = "".join([*pieces, broken[done:]]).replace(BREAK, "")
        if self._variant is None:
            self._variant = _variant(self._tokenizer, list(self._controls.values()))
        result = self._variant.encode(text, add_special_tokens=add_special_tokens)
        if self._written(result, text, private=True) != wanted:
            raise VlmcError(
                "a text spells a special token, and this tokenizer cannot keep the two apart",
                hint="leave out the words that spell the model's special tokens",
            )
        return list(result.ids)

    def _written(self, encoding: Encoding, text: str, private: bool = False) -> list[int]:
        return [id for id, _ in self._found(encoding, text, private)]

    def _places(self, encoding: Encoding, text: str) -> list[tuple[int, int]]:
        return [place for _, place in self._found(encoding, text)]

    def _found(
        self, encoding: Encoding, text: str, private: bool = False
    ) -> list[tuple[int, tuple[int, int]]]:
        """Control tokens that stand for a part of ``text``, with their places."""
        found = []
        for id, place, added in zip(
            encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            if added or id not in self._controls:
                continue
            # The unknown token is also the id of what the vocabulary lacks.
            control = self._controls[id]
            form = control.private if private else control.content
            if id == self._unknown and form not in text[slice(*place)]:
                continue
            found.append((id, place))
        return found


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The id of what the vocabulary lacks; a unigram model says it in its file alone."""
    named = getattr(tokenizer.model, "unk_token", None)
    if named is not None:
        return tokenizer.token_to_id(named)
    if type(tokenizer.model).__name__ != "Unigram":
        return None
    id: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return id


def _break(text: str) -> str:
    return BREAK + BREAK.join(text) + BREAK


def _variant(tokenizer: Tokenizer, controls: Sequence[Control]) -> Tokenizer:
    """The tokenizer with each control token's text replaced by its private form, ids kept."""
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    private = {control.content: control.private for control in controls}
    for token in data["added_tokens"]:
        token["content"] = private.get(token["content"], token["content"])
    model = data["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[private.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {private.get(piece, piece): id for piece, id in vocabulary.items()}
    if model.get("unk_token") in private:
        model["unk_token"] = private[model["unk_token"]]
    if model.get("merges"):
        # A merge that makes or takes a control token would name a piece that is gone.
        prefix = len(model.get("continuing_subword_prefix") or "")
        model["merges"] = [
            pair
            for pair in model["merges"]
            if not _touches(pair.split(" ") if isinstance(pair, str) else pair, private, prefix)
        ]
    variant = Tokenizer.from_str(json.dumps(data))
    for control in controls:
        if variant.token_to_id(control.private) != control.id:
            raise VlmcError(f"the tokenizer gives '{control.content}' no fixed id")
    return variant


def _touches(pair: Sequence[str], private: dict[str, str], prefix: int) -> bool:
    left, right = pair
    return left in private or right in private or left + right[prefix:] in private
