"""Shared ground of every file format: strict frozen models and the words they use."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from vlmc.errors import VlmcError

Split = Literal["dual", "single"]
LanguagePrecision = Literal["fp32", "fp16", "int8", "int4"]
VisionPrecision = Literal["fp32", "fp16", "int8"]
CachePrecision = Literal["fp32", "fp16"]
Json = dict[str, object]

Row = TypeVar("Row")


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Frozen(BaseModel):
    """A value read from outside: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Kebab(Frozen):
    """A value people write by hand: the same, with kebab-case keys."""

    model_config = ConfigDict(alias_generator=_kebab)


def lookup(table: Mapping[str, Row], name: str, *, kind: str, at: str | None = None) -> Row:
    """The row of an extension table, or an error that lists its rows.

    Raises:
        VlmcError: ``name`` is not a row of ``table``.
    """
    if name not in table:
        raise VlmcError(f"unknown {kind} '{name}'", at=at, allowed=table, got=name)
    return table[name]
