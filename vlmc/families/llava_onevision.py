"""LLaVA-OneVision: LLaVA-NeXT with more tiles, whose features are shrunk where they are many.

Mirrors ``transformers.models.llava_onevision`` (``LlavaOnevisionForConditionalGeneration``) on
pictures. Where a prompt shows several, each is one tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import ONEVISION
from vlmc.families.configs import section
from vlmc.families.llava import decoder
from vlmc.families.llava_next import anyres_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
# With no vision_config at all, LlavaOnevisionConfig builds SigLIP so400m at 384 pixels.
_SO400M: Json = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "patch_size": 14,
}
_PREFIX = "anyres_max_"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a LLaVA-OneVision checkpoint.

    Raises:
        VlmcError: As ``anyres_facts``, or model and processor shrink pictures differently.
    """
    ratio = _most_tiles(checkpoint.config, _AT)
    if _most_tiles(checkpoint.processor, "processor_config.json") != ratio:
        raise VlmcError(
            f"the model shrinks pictures to {ratio} tiles, its processor does not",
            at="processor_config.json: vision_aspect_ratio",
        )
    return anyres_facts(
        _filled(checkpoint.config),
        checkpoint.image_processor,
        image_token=151646,
        kind=ONEVISION,
        most_tiles=ratio,
    )


def _most_tiles(values: Json, at: str) -> int:
    """The number in ``anyres_max_9``, found as transformers finds it."""
    word = values.get("vision_aspect_ratio") or f"{_PREFIX}9"
    number = word.strip(_PREFIX) if isinstance(word, str) else ""
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise VlmcError(f"'vision_aspect_ratio' is {word!r}, not '{_PREFIX}' and a number", at=at)
    return int(number)


def _filled(config: Json) -> Json:
    """The configuration with the defaults that differ from LLaVA-NeXT's."""
    given = {key: value for key, value in config.items() if value is not None}
    defaults: Json = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    tower = section(config, "vision_config", at=_AT) or _SO400M
    text = section(config, "text_config", at=_AT)
    return {
        **defaults,
        **given,
        "vision_config": {"model_type": "siglip_vision_model", **tower},
        "text_config": {"model_type": "qwen2", **text},
    }


def vision(model: nn.Module) -> nn.Module:
    """The tower, the projector and the line break, for one image.

    Takes tiles float ``[tiles, 3, S, S]`` and, for each token, four of their rows int64
    ``[tokens, 4]`` with a share of each float ``[tokens, 4]``; gives features ``[tokens,
    hidden]``. Mirrors ``LlavaOnevisionModel.get_image_features``.
    """
    from vlmc.families.anyres_towers import BlendedImageFeatures

    return BlendedImageFeatures(model)


FAMILY = Family(
    name="llava-onevision",
    title="LLaVA-OneVision",
    model_types=("llava_onevision",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3, "image_tokens": 23},
    plain_image="<image>\n",
)
