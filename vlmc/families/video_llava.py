"""Video-LLaVA, for pictures: a LLaVA whose pictures have a tower of their own.

Mirrors ``transformers.models.video_llava`` (``VideoLlavaForConditionalGeneration``); the tower of
videos is left out.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.families import llava
from vlmc.families.configs import section
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

# What VideoLlavaConfig builds where there is no vision_config at all.
_CLIP_L: Json = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 224,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Video-LLaVA checkpoint: LLaVA's facts, of another default tower.

    Raises:
        VlmcError: As for LLaVA.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at="config.json") or _CLIP_L
    return llava.facts(replace(checkpoint, config={**config, "vision_config": tower}))


FAMILY = Family(
    name="video-llava",
    title="Video-LLaVA (images)",
    model_types=("video_llava",),
    facts=facts,
    vision=llava.vision,
    decoder=llava.decoder,
    example={},
    plain_image="<image>\n",
)
