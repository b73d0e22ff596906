"""Qwen3-Omni: Qwen3-VL with experts; what it hears and says is left out.

Mirrors ``transformers.models.qwen3_omni_moe`` (``Qwen3OmniMoeThinkerForConditionalGeneration``),
for pictures.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.families.configs import section
from vlmc.families.qwen2_5_omni_thinker import PART, thinker_facts
from vlmc.families.qwen2_vl import decoder
from vlmc.families.qwen3_vl import deepstack_facts, vision
from vlmc.families.qwen3_vl_moe import expert_weights
from vlmc.families.spec import Checkpoint, Family, ModelFacts

# Of experts, of an expert's width, of a feed-forward's.
_SIZES = (128, 768, 18944)


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen3-Omni, or of its thinker alone, the part that writes.

    Raises:
        VlmcError: As for Qwen3-VL with experts; or the configuration does not name the token that
            opens a picture, by which transformers knows one from the text.
    """
    # Where the thinker names no end token, the whole's ``generate`` has one of its own.
    return thinker_facts(checkpoint, "qwen3_omni_moe", _facts, ends=(151645,))


def _facts(checkpoint: Checkpoint) -> ModelFacts:
    found = deepstack_facts(checkpoint, "qwen3_omni_moe_text")
    assert found.weights is not None
    text = section(checkpoint.config, "text_config", at="config.json")
    sizes = (found.text.layers, found.text.hidden)
    extra = expert_weights(text, *sizes, key="num_experts", sizes=_SIZES)
    return replace(found, weights=replace(found.weights, language=found.weights.language + extra))


FAMILY = Family(
    name="qwen3-omni",
    title="Qwen3-Omni",
    model_types=("qwen3_omni_moe", "qwen3_omni_moe_thinker"),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
    part=PART,
)
