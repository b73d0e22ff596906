"""ViP-LLaVA: a LLaVA whose projector reads several layers of the tower, side by side.

Mirrors ``transformers.models.vipllava`` (``VipLlavaForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.families import llava
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_LAYERS = [-2, -5, -8, -11, 6]


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a ViP-LLaVA checkpoint: LLaVA's facts, other defaults.

    Raises:
        VlmcError: As for LLaVA.
    """
    return llava.facts(replace(checkpoint, config=_as_llava(checkpoint.config)))


def _as_llava(config: Json) -> Json:
    """The configuration in LLaVA's words; the first checkpoints wrote ``vision_feature_layers``."""
    named = (config.get("vision_feature_layer"), config.get("vision_feature_layers"), _LAYERS)
    layers = next(value for value in named if value is not None)
    # The first token is dropped, whatever the tower.
    return {
        **config,
        "vision_feature_layer": layers,
        "vision_feature_select_strategy": "default",
    }


FAMILY = Family(
    name="vipllava",
    title="ViP-LLaVA",
    model_types=("vipllava",),
    facts=facts,
    vision=llava.vision,
    decoder=llava.decoder,
    example={},
    plain_image="<image>\n",
)
