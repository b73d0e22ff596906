"""Qwen3.5 with a decoder of experts, one of which every token takes.

Mirrors ``transformers.models.qwen3_5_moe`` (``Qwen3_5MoeForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.families.configs import section, whole
from vlmc.families.qwen2_vl import decoder
from vlmc.families.qwen3_5 import delta_facts, vision
from vlmc.families.spec import Checkpoint, Family, ModelFacts

_AT = "config.json: text_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen3.5 checkpoint with experts.

    Raises:
        VlmcError: As for Qwen3.5; or a number of experts makes no sense.
    """
    found = delta_facts(checkpoint, "qwen3_5_moe_text")
    assert found.weights is not None
    config = section(checkpoint.config, "text_config", at="config.json")
    experts = whole(config, "num_experts", 256, at=_AT)
    inner = whole(config, "moe_intermediate_size", 512, at=_AT)
    shared = whole(config, "shared_expert_intermediate_size", 512, at=_AT)
    unused = whole(config, "intermediate_size", 0, at=_AT, least=0)  # counted as a dense one's
    # With the routers, and the gate of the shared expert.
    extra = 3 * (experts * inner + shared - unused) + experts + 1
    language = found.weights.language + found.text.layers * found.text.hidden * extra
    return replace(found, weights=replace(found.weights, language=language))


FAMILY = Family(
    name="qwen3.5-moe",
    title="Qwen3.5 with experts",
    model_types=("qwen3_5_moe",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
