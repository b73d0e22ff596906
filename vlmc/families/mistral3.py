"""Mistral 3: Pixtral's tower with its patches merged by four, and a Mistral or Ministral decoder.

Mirrors ``transformers.models.mistral3`` (``Mistral3ForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.llava import decoder, image_token_id
from vlmc.families.pixtral import Tower, pixtral_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.families.text import text_facts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
# What Mistral3Config builds where there is no text_config at all.
_TEXT: Json = {
    "model_type": "mistral",
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "vocab_size": 131072,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Mistral 3 checkpoint.

    Raises:
        VlmcError: As for Pixtral; or features of several layers are asked for.
    """
    config = {"vision_feature_layer": -1, **checkpoint.config}
    if not section(config, "text_config", at=_AT):
        config["text_config"] = _TEXT
    chosen = config["vision_feature_layer"]
    if isinstance(chosen, list) and len(chosen) != 1:
        at = f"{_AT}: vision_feature_layer"
        raise VlmcError("the projector's norm takes the features of one layer", at=at)
    # A tower that is described takes the class's own defaults.
    given = section(config, "vision_config", at=_AT)
    found = section(config, "text_config", at=_AT)
    return pixtral_facts(
        replace(checkpoint, config=config),
        text_facts(found, str(found.get("model_type") or "mistral")),
        Tower() if given else Tower(patch=14),
        merge=whole(config, "spatial_merge_size", 2, at=_AT),
        image_token=image_token_id(config, 10),
    )


def vision(model: nn.Module) -> nn.Module:
    """The tower, the merger and the projector, for one image.

    Takes patches float ``[P, 3*p*p]`` and their places int64 ``[P, 2]``, both in merged-block
    order, gives features ``[P / merge**2, hidden]``. Mirrors ``Mistral3Model.get_image_features``
    with one picture.
    """
    from vlmc.families.grid_towers import PixtralImageFeatures

    return PixtralImageFeatures(model)


FAMILY = Family(
    name="mistral3",
    title="Mistral Small 3.1 and 3.2, Ministral 3",
    model_types=("mistral3",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="[IMG]",
)
