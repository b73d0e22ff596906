"""Qwen2.5-Omni: Qwen2.5-VL's tower and positions; what it hears and says is left out.

Mirrors ``transformers.models.qwen2_5_omni`` (``Qwen2_5OmniThinkerForConditionalGeneration``), for
pictures.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.families.configs import section, whole
from vlmc.families.qwen2_5_vl import vision, window_facts
from vlmc.families.qwen2_vl import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_AT = "config.json"
_PART = "thinker_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen2.5-Omni, or of its thinker alone, the part that writes.

    Raises:
        VlmcError: As for Qwen2.5-VL; or the configuration does not name the token that opens a
            picture, by which transformers knows one from the text.
    """
    inner = checkpoint.config.get("model_type") == "qwen2_5_omni"
    config = section(checkpoint.config, _PART, at=_AT) if inner else checkpoint.config
    whole(config, "vision_start_token_id", at=_AT, least=0)
    shown = "image_token_index" if config.get("image_token_id") is None else "image_token_id"
    text = section(config, "text_config", at=_AT)
    as_vl: Json = {
        **config,
        "image_token_id": whole(config, shown, 151655, at=_AT, least=0),
        # Whether the tables are one is said once, and not by the decoder.
        "text_config": {**text, "tie_word_embeddings": config.get("tie_word_embeddings") is True},
    }
    found = window_facts(replace(checkpoint, config=as_vl), "qwen2_5_omni_text")
    # A generation configuration beside the whole is none of the thinker's.
    return replace(found, ends=_ends(config, text)) if inner else found


def _ends(config: Json, text: Json) -> tuple[int, ...]:
    """End tokens of the thinker's configuration, or of its decoder's."""
    value = next((c["eos_token_id"] for c in (config, text) if c.get("eos_token_id")), [])
    ids = value if isinstance(value, list) else [value]
    return tuple(whole({"eos_token_id": one}, "eos_token_id", at=_AT, least=0) for one in ids)


FAMILY = Family(
    name="qwen2.5-omni",
    title="Qwen2.5-Omni",
    model_types=("qwen2_5_omni", "qwen2_5_omni_thinker"),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "windows": 11},
    plain_image="<|vision_bos|><|IMAGE|><|vision_eos|>",
    part=_PART,
)
