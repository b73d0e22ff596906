"""The model families: one row each."""

from vlmc.families import (
    aya_vision,
    cohere2_vision,
    deepseek_vl,
    gemma3,
    idefics3,
    internvl,
    janus,
    llama4,
    llava,
    llava_next,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    vipllava,
)
from vlmc.families.spec import Family
from vlmc.schema import lookup

_ROWS = (
    llava.FAMILY,
    vipllava.FAMILY,
    llava_next.FAMILY,
    internvl.FAMILY,
    qwen2_vl.FAMILY,
    qwen2_5_vl.FAMILY,
    qwen3_vl.FAMILY,
    idefics3.FAMILY,
    gemma3.FAMILY,
    paligemma.FAMILY,
    llama4.FAMILY,
    aya_vision.FAMILY,
    cohere2_vision.FAMILY,
    deepseek_vl.FAMILY,
    janus.FAMILY,
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def by_model_type(model_type: str, *, at: str | None = None) -> Family:
    """The family that serves a checkpoint.

    Args:
        model_type: ``model_type`` of its ``config.json``.
        at: Its place, for errors.

    Raises:
        VlmcError: No family does; the known ones are listed.
    """
    types = {name: family for family in FAMILIES.values() for name in family.model_types}
    return lookup(types, model_type, kind="model type", at=at)
