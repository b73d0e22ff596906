"""Phi-4-multimodal: crops of a picture and the whole, before a decoder of fused projections.

Mirrors ``transformers.models.phi4_multimodal`` (``Phi4MultimodalForCausalLM``) for pictures; what
hears is left out. The class holds no LoRA: adapters lie beside a checkpoint, and are to be merged
into it before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.hd_crops_processor import hd_crops_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import hd_crops, image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Phi-4-multimodal checkpoint.

    Raises:
        VlmcError: The decoder, the tower and the processor disagree on the size of a crop, or the
            layer that is read is none of the tower's.
    """
    config = checkpoint.config
    text = text_facts(config, "phi4_multimodal", at=_AT)
    tower = section(config, "vision_config", at=_AT)
    side = _side(tower, "image_size", 448)
    crop = whole(tower, "crop_size", 448, at=_VISION)
    if crop != side:
        message = f"crops of {crop} pixels, where the tower takes {side}"
        raise VlmcError(message, at=f"{_VISION}: crop_size")
    patch = _side(tower, "patch_size", 14)
    layers = whole(tower, "num_hidden_layers", 27, at=_VISION, most=MAX_LAYERS)
    layers_read(tower.get("feature_layer", -2), layers)
    images = hd_crops_spec(
        checkpoint.image_processor,
        image_size=side,
        patch_size=patch,
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    # As text: there a list may stand for a tuple.
    options = hd_crops.Options.model_validate_json(json.dumps(images.options))
    width = whole(tower, "hidden_size", 1152, at=_VISION)
    inner = whole(tower, "intermediate_size", 4304, at=_VISION)
    vision = width * (layers * (4 * width + 2 * inner) + 3 * patch**2 + options.patches**2)
    vision += text.hidden * (width + text.hidden)
    tied = config.get("tie_word_embeddings") is True
    return ModelFacts(
        text=text,
        image_token_id=whole(tower, "image_token_id", 200010, at=_VISION, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=hd_crops.least_tokens(options),
        weights=WeightCounts(vision, *text_weights(config, text, tied=tied)),
    )


def _side(tower: Json, key: str, default: int) -> int:
    """A length that may be given for height and width, which are then equal."""
    value = tower.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return whole({key: value[0]}, key, at=_VISION)
    return whole(tower, key, default, at=_VISION)


def layers_read(feature_layer: object, layers: int) -> int:
    """How many of the tower's layers run before its features are read.

    Args:
        feature_layer: Which of the states is read: that before the first layer is 0, that after
            the last is -1.
        layers: Of the tower.

    Raises:
        VlmcError: There is no such state.
    """
    states = layers + 1
    if type(feature_layer) is not int or not -states <= feature_layer < states:
        raise VlmcError(
            f"{feature_layer!r} is none of the {states} states of the tower",
            at=f"{_VISION}: feature_layer",
        )
    return feature_layer % states


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projection, for one image.

    Takes crops float ``[crops, 3, S, S]``, places int64 ``[crops, patches]``, the order of the
    rows int64 ``[tokens]`` and whether patches see no later one, float ``[1]``; gives features
    ``[tokens, hidden]``. Mirrors ``Phi4MultimodalImageEmbedding.forward``.
    """
    from vlmc.families.phi4_modules import HdCropFeatures

    return HdCropFeatures(model)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Phi4MultimodalModel``, given embeddings."""
    inner: nn.Module = model.model  # type: ignore[assignment]
    return inner


def reference(model: Any) -> None:
    """Has transformers' model answer as it does where nobody says how attention is computed.

    That is sdpa, in whose hands the tower's patches see no later ones where no patch of the
    prompt's pictures is padding; with eager attention they always do.
    """
    from vlmc.families.phi4_modules import image_features

    embed = model.model.embed_tokens_extend.image_embed
    embed.img_processor.config._attn_implementation = "sdpa"
    model.get_image_features = lambda **given: image_features(embed, **given)


FAMILY = Family(
    name="phi4-multimodal",
    title="Phi-4-multimodal",
    model_types=("phi4_multimodal",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3, "image_tokens": 23},
    plain_image="{image}",
    reference=reference,
)
