"""YAML as recipes may use it: plain mappings, lists and scalars, with the line of every key."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlmc.errors import VlmcError, nearest

Keys = tuple[str, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 20

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


@dataclass(frozen=True)
class Parsed:
    """Plain values, and the line (from 1) on which each key stands."""

    value: object
    lines: dict[Keys, int] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        VlmcError: It is missing (the nearest file name is suggested), a folder, too large, not
            readable or not UTF-8.
    """
    try:
        if path.is_dir():
            raise VlmcError("this is a folder, not a recipe file", at=str(path))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        near = nearest(path.name, [p.name for p in _siblings(path)])
        hint = f"did you mean '{path.with_name(near)}'?" if near else None
        raise VlmcError("there is no such file", at=str(path), hint=hint) from error
    except OSError as error:
        raise VlmcError(f"cannot be read: {error.strerror}", at=str(path)) from error
    if len(raw) > MAX_BYTES:
        raise VlmcError("too large for a recipe: over 1 MiB", at=str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise VlmcError("not a text in UTF-8", at=f"{path}:{line}") from error


def _siblings(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"})
    except OSError:
        return []


def parse(text: str, at: str, *, numbered: bool = True) -> Parsed:
    """Reads one YAML document.

    Scalars follow YAML 1.2's core: ``yes``, ``no``, ``on``, ``off``, ``0o17``, ``017``, ``1:30``
    and dates are words; whether a word fits is the schema's affair.

    Args:
        text: The document.
        at: Where it comes from, for errors.
        numbered: Errors add the line to it.

    Raises:
        VlmcError: Not YAML, more than one document, or a trap: tags, anchors, aliases,
            duplicate keys, keys that are no words, infinities, deep nesting.
    """
    lines: dict[Keys, int] = {}
    try:
        node = _Loader(text).get_single_node()
        return Parsed(None if node is None else _value(node, (), lines), lines)
    except yaml.YAMLError as error:
        refused = _not_yaml(error)
    except _RefusedError as error:
        refused = error
    place = f"{at}:{refused.line}" if numbered and refused.line else at
    raise VlmcError(refused.message, at=place, hint=refused.hint)


class _RefusedError(Exception):
    """What a recipe may not hold, with its line from 1 where it is known."""

    def __init__(self, message: str, line: int | None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.hint = hint


class _Loader(yaml.SafeLoader):
    """PyYAML's composer, refusing what makes one text mean another."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _RefusedError(
                "anchors and aliases are not allowed in a recipe", line, "write it out"
            )
        if getattr(event, "tag", None) is not None:
            raise _RefusedError(
                f"the tag '{event.tag}' is not allowed in a recipe", line, "leave it out"
            )
        if self.depth >= MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_DEPTH} levels", line)
        self.depth += 1
        try:
            return super().compose_node(parent, index)  # type: ignore[arg-type]
        finally:
            self.depth -= 1


def _not_yaml(error: yaml.YAMLError) -> _RefusedError:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else None
    if "expected a single document" in str(error):
        return _RefusedError("more than one document in the file", line, "remove the '---'")
    hint = "indent with spaces, not tabs" if "'\\t'" in problem else None
    return _RefusedError(f"not valid YAML: {problem}", line, hint)


def _value(node: yaml.Node, keys: Keys, lines: dict[Keys, int]) -> object:
    line = node.start_mark.line + 1
    lines.setdefault(keys, line)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.value, line) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*keys, str(i)), lines) for i, item in enumerate(node.value)]
    found: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _RefusedError("a key must be a word", line)
        key = key_node.value
        if key in found:
            first = lines[(*keys, key)]
            raise _RefusedError(f"the key '{key}' is given twice (first on line {first})", line)
        lines[(*keys, key)] = line
        found[key] = _value(value_node, (*keys, key), lines)
    return found


def _scalar(text: str, line: int) -> object:
    if text in _WORDS:
        return _WORDS[text]
    read: Callable[[str], float] | None = None
    if _INT.fullmatch(text):
        # Beyond 18 digits no key has a use for it, and Python's own limit is not far.
        if len(text) > 19:
            raise _RefusedError(f"the number is too large: {text[:20]}...", line)
        return int(text)
    if _FLOAT.fullmatch(text):
        read = float
    if _NOT_FINITE.fullmatch(text) or (read and not math.isfinite(read(text))):
        raise _RefusedError(f"'{text}' is not a finite number", line)
    return read(text) if read else text
