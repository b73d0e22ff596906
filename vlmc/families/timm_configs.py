"""Reads a ``timm_wrapper`` vision configuration: a tower named as the package timm names it.

Mirrors ``transformers.models.timm_wrapper`` (``TimmWrapperConfig``) and ``timm.create_model``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_SIZE, section
from vlmc.schema import Json, lookup

AT = "config.json: vision_config"
ARGS_AT = f"{AT}.model_args"
# What changes training alone, or what is made of a tower's features behind them.
_WITHOUT_EFFECT = {
    "drop_rate",
    "drop_path_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "pos_drop_rate",
    "head_init_scale",
    "layer_scale_init_value",
    "global_pool",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}
Row = TypeVar("Row")


def architecture(vision: Json, known: Mapping[str, Row], default: str | None = None) -> Row:
    """The row of the architecture that a configuration names.

    Args:
        vision: The ``vision_config``.
        known: By name; the tag behind a dot (``fastvit_mci3.apple_mclip2_dfndr2b``) names
            weights, not another tower.
        default: Where none is named.

    Raises:
        VlmcError: It is not known.
    """
    named = vision.get("architecture")
    named = default if named is None else named
    name = named.partition(".")[0] if isinstance(named, str) else str(named)
    return lookup(known, name, kind="vision tower", at=f"{AT}: architecture")


def model_args(vision: Json, known: Collection[str]) -> Json:
    """What a configuration changes of its architecture; nulls change nothing.

    Raises:
        VlmcError: It changes what is not ``known``.
    """
    given = section(vision, "model_args", at=AT)
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("features_only", "fork_feat"):
        if given.get(key) is False:
            del given[key]
    for key in given:
        if key not in known and key not in _WITHOUT_EFFECT:
            raise VlmcError(
                f"'{key}' of this tower cannot be changed here",
                at=ARGS_AT,
                allowed=known,
                got=key,
            )
    return {key: value for key, value in given.items() if key in known}


def numbers(args: Json, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A list of whole numbers above 0 among ``args``.

    Raises:
        VlmcError: It is none.
    """
    value = args.get(key, list(default))
    if not isinstance(value, list) or not value:
        raise VlmcError(f"'{key}' is {value!r}, not a list of whole numbers", at=ARGS_AT)
    for one in value:
        if not isinstance(one, int) or isinstance(one, bool) or not 0 < one <= MAX_SIZE:
            raise VlmcError(f"'{key}' is {value!r}, not a list of whole numbers", at=ARGS_AT)
    return tuple(value)


def ratio(value: object, key: str) -> float:
    """A factor above 0.

    Raises:
        VlmcError: It is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise VlmcError(f"'{key}' is {value!r}, not a number", at=ARGS_AT)
    if not math.isfinite(value) or value <= 0:
        raise VlmcError(f"'{key}' is {value!r}, not a number above 0", at=ARGS_AT)
    return value


def flag(args: Json, key: str, default: bool) -> bool:
    """True or false among ``args``.

    Raises:
        VlmcError: It is neither.
    """
    value = args.get(key, default)
    if not isinstance(value, bool):
        raise VlmcError(f"'{key}' is {value!r}, neither true nor false", at=ARGS_AT)
    return value
