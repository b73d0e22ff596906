"""Cohere Compass (North Micro Vision): Qwen3-VL's tower, Cohere 2 with three-axis positions.

Mirrors ``transformers.models.cohere_compass`` (``CohereCompassForConditionalGeneration``), for
pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.families.qwen2_vl import decoder
from vlmc.families.qwen3_vl import deepstack_facts, vision
from vlmc.families.spec import Checkpoint, Family, ModelFacts

if TYPE_CHECKING:
    from torch import Tensor


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Cohere Compass checkpoint.

    Raises:
        VlmcError: As for Qwen3-VL.
    """
    return deepstack_facts(checkpoint, "cohere_compass_text", image_token=255031)


def logits(model: Any, values: Tensor) -> Tensor:
    """The head's logits, scaled as ``CohereCompassForConditionalGeneration.forward`` does."""
    scale = model.config.text_config.logit_scale
    return values if scale is None else values * scale


FAMILY = Family(
    name="cohere-compass",
    title="North Micro Vision (Cohere Compass)",
    model_types=("cohere_compass",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
    logits=logits,
)
