"""Version 1 of the recipe: its keys, their values, their defaults."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, FiniteFloat

from vlmc.schema import (
    CachePrecision,
    Json,
    Kebab,
    LanguagePrecision,
    Split,
    VisionPrecision,
)

MAX_CTX_LEN = 1_048_576
MAX_BATCH_SIZE = 256
MAX_PIXELS = 1 << 30

_UNITS = {"B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}iB"] = 1024**_power


def _read_size(value: object) -> object:
    """``"2.5GiB"`` as a number of bytes; anything else as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]?i?B)", value.strip())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"'{value}' is not a size; write a number and a unit, as in 4GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def _read_precision(value: object) -> object:
    """A word is the language part's precision."""
    return {"language": value} if isinstance(value, str) else value


def _not_bool(value: object) -> object:
    """True equals 1, but is no version."""
    return str(value).lower() if isinstance(value, bool) else value


PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
Size = Annotated[int, BeforeValidator(_read_size), Field(gt=0, le=1 << 50)]
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]


class Precision(Kebab):
    """How numbers are stored, part by part."""

    vision: VisionPrecision = "fp32"
    language: LanguagePrecision = "fp32"
    kv_cache: CachePrecision = "fp32"


class Images(Kebab):
    """Bounds on pictures; those left out are the model's own."""

    max_per_prompt: Annotated[int, Field(ge=1, le=4096)] | None = None
    min_pixels: Pixels | None = None
    max_pixels: Pixels | None = None
    max_tiles: Annotated[int, Field(ge=1, le=256)] | None = None


class Quantize(Kebab):
    """How weights are stored in fewer bits.

    ``embedding`` and ``head`` left out follow ``precision.language``, but never below int8.
    ``calibration`` is ``auto``, ``off``, or a file of questions: its path relative to the recipe
    as written, absolute once loaded.
    """

    block: Literal[16, 32, 64, 128] = 32
    embedding: LanguagePrecision | None = None
    head: LanguagePrecision | None = None
    calibration: Annotated[str, Field(min_length=1, max_length=4096)] = "auto"

    @property
    def questions(self) -> Path | None:
        """The file to calibrate with, or None when it is a word."""
        return None if self.calibration in ("auto", "off") else Path(self.calibration)


class Compile(Kebab):
    """The engine that runs the programs; ``threads`` left out is one per core at run time.

    ``target: host`` times the kernels of each product on the machine that builds and takes the
    faster; such bundles differ from machine to machine. They still run on any.
    """

    backend: str = "onnxruntime"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    target: Literal["any", "host"] = "any"


class Checks(Kebab):
    """Gates on numbers; one left out does not fail the build, its figure is still reported."""

    max_logit_error: PositiveFloat | None = None
    max_feature_error: PositiveFloat | None = None
    min_token_agreement: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    reference: Literal["auto", "off"] = "auto"


class Budgets(Kebab):
    """Gates on what the bundle and its build may take; sizes in bytes."""

    max_bundle_size: Size | None = None
    max_build_memory: Size | None = None
    max_build_seconds: PositiveFloat | None = None


class Recipe(Kebab):
    """What to build.

    Attributes:
        model: A hub id (``owner/name``), or the absolute path of a model folder.
        prefill_seq_len: Tokens per prefill step; None: 128, or ``ctx_len`` where that is less.
        ctx_len: Positions of the KV cache; None: 4096, or what the model has where that is less.
        batch_size: Rows decoded together.
        name: The bundle's name; a safe file name.
        revision: Commit, tag or branch on the hub.
    """

    model: Annotated[str, Field(min_length=1, max_length=4096)]
    prefill_seq_len: Annotated[int, Field(ge=1, le=MAX_CTX_LEN)] | None = None
    ctx_len: Annotated[int, Field(ge=2, le=MAX_CTX_LEN)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = 1
    precision: Annotated[Precision, BeforeValidator(_read_precision)] = Precision()
    split: Split = "dual"
    recipe: Annotated[Literal[1], BeforeValidator(_not_bool)] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?$")]
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,199}$")] | None = None
    images: Images = Images()
    quantize: Quantize = Quantize()
    compile: Compile = Compile()
    checks: Checks = Checks()
    budgets: Budgets = Budgets()

    @property
    def folder(self) -> Path | None:
        """The local model folder, or None when the model is on the hub."""
        path = Path(self.model)
        return path if path.is_absolute() else None


def recorded(recipe: Recipe) -> Json:
    """The recipe as a bundle records it: JSON values, kebab-case keys, no path of this machine."""
    values: Json = recipe.model_dump(mode="json", by_alias=True)
    if recipe.folder is not None:
        values["model"] = "local"
    if recipe.quantize.questions is not None:
        kept = recipe.quantize.model_copy(update={"calibration": recipe.quantize.questions.name})
        values["quantize"] = kept.model_dump(mode="json", by_alias=True)
    return values


def section_keys() -> Mapping[str, tuple[str, ...]]:
    """The keys of every section by its path; the top level is ``""``."""
    found: dict[str, tuple[str, ...]] = {"": tuple(map(_alias, Recipe.model_fields))}
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Kebab):
            found[_alias(name)] = tuple(map(_alias, kind.model_fields))
    return found


def _alias(name: str) -> str:
    return name.replace("_", "-")
