"""Schema errors in the words of a recipe's author: place, value, what is allowed, nearest match."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from vlmc.errors import VlmcError, nearest
from vlmc.recipe.schema import section_keys

Place = Callable[[tuple[str, ...]], str]

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a word",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
}
_NAMES = {
    "name": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    "revision": "a commit, tag or branch: letters, digits, '.', '_', '/' and '-'",
}


def explain(error: ValidationError, place: Place, file: str) -> VlmcError:
    """The mistakes of one recipe as one error.

    Args:
        error: What pydantic found.
        place: Key path -> where it was written (file and line, or flag, and the path).
        file: The recipe, named when there are several mistakes.
    """
    found = [_explain(detail, place) for detail in error.errors(include_url=False)]
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  {line}" for one in found for line in str(one).splitlines())
    return VlmcError(f"{len(found)} mistakes in this recipe\n{listed}", at=file)


def _explain(detail: Mapping[str, Any], place: Place) -> VlmcError:
    keys = tuple(str(key) for key in detail["loc"])
    kind: str = detail["type"]
    given = detail["input"]
    limits: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(keys, place)
    at = place(keys)
    if kind == "missing":
        return VlmcError(f"the key '{keys[-1]}' is missing", at=at)
    if kind == "literal_error":
        return _not_allowed(keys, given, str(limits["expected"]), at)
    if kind in _KINDS:
        hint = None
        if kind == "string_type" and not isinstance(given, dict | list | None.__class__):
            hint = "quote it if it is meant as a word"
        return VlmcError(f"{show(given)} is not {_KINDS[kind]}", at=at, hint=hint)
    if kind == "string_pattern_mismatch":
        return VlmcError(f"{show(given)} cannot be a {keys[-1]}", at=at, hint=_NAMES[keys[-1]])
    if kind == "value_error":
        return VlmcError(str(limits["error"]), at=at)
    for word, bound in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
        if word in limits:
            return VlmcError(f"{show(given)} is out of range: {bound} {limits[word]}", at=at)
    return VlmcError(f"{show(given)}: {detail['msg']}", at=at)


def _unknown_key(keys: tuple[str, ...], place: Place) -> VlmcError:
    sections = section_keys()
    section, key = ".".join(keys[:-1]), keys[-1]
    allowed = sections[section]
    hint = None
    if nearest(key, allowed) is None:
        owner = next((name for name, members in sections.items() if key in members), None)
        if owner is not None:
            hint = f"'{key}' belongs under '{owner}'" if owner else f"'{key}' is a top-level key"
    return VlmcError(f"unknown key '{key}'", at=place(keys), allowed=allowed, got=key, hint=hint)


def _not_allowed(keys: tuple[str, ...], given: object, expected: str, at: str) -> VlmcError:
    # pydantic lists a Literal as: 'a', 'b' or 'c'
    words = expected.replace(" or ", ", ").split(", ")
    allowed = [word.strip("'") for word in words]
    if keys == ("recipe",):
        message = f"recipe version {show(given)} is not known to this version of vlmc"
        return VlmcError(message, at=at, allowed=allowed)
    got = given if isinstance(given, str) else None
    hint = None
    if given is None:
        hint = "give it a value, or leave the key out"
    message = f"{show(given)} is not allowed here"
    return VlmcError(message, at=at, allowed=allowed, got=got, hint=hint)


def show(value: object) -> str:
    """A value as YAML's readers know it, in few characters."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return f"'{str(value).lower()}'"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return f"'{text[:60]}...'" if len(text) > 60 else f"'{text}'"
