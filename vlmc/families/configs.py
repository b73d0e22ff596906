"""Typed values out of a model's JSON files, and errors that name the key."""

from collections.abc import Collection

from vlmc.errors import VlmcError
from vlmc.schema import Json

MAX_SIZE = 1 << 31
MAX_LAYERS = 4096


def whole(
    config: Json,
    key: str,
    default: int | None = None,
    *,
    at: str,
    least: int = 1,
    most: int = MAX_SIZE,
) -> int:
    """The whole number under ``key``, or ``default`` where it is absent or null.

    Raises:
        VlmcError: It is absent without a default, no whole number, or out of bounds.
    """
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise VlmcError(f"'{key}' is missing", at=at)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise VlmcError(f"'{key}' is {value!r}, not a whole number of {least} or more", at=at)
    if value > most:
        raise VlmcError(f"'{key}' is {value}; the most that makes sense is {most}", at=at)
    return value


def section(config: Json, key: str, *, at: str) -> Json:
    """The mapping under ``key``; empty where it is absent or null.

    Raises:
        VlmcError: It is something else.
    """
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise VlmcError(f"'{key}' is not a mapping", at=at)
    return value


def word(config: Json, key: str, default: str, allowed: Collection[str], *, at: str) -> str:
    """The word under ``key``, or ``default`` where it is absent or null.

    Raises:
        VlmcError: It is none of ``allowed``.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in allowed:
        got = value if isinstance(value, str) else None
        raise VlmcError(f"'{key}' is {value!r}", at=f"{at}: {key}", allowed=allowed, got=got)
    return value
