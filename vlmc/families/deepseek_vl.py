"""DeepSeek-VL: a SigLIP tower and a two-layer aligner before a Llama.

Mirrors ``transformers.models.deepseek_vl`` (``DeepseekVLForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.image_processors import fixed_spec
from vlmc.families.llava import decoder, decoder_facts, tower_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_weights
from vlmc.runtime.images import image_tokens, vision_inputs

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a DeepSeek-VL checkpoint.

    Raises:
        VlmcError: Its tower is of another kind, or its processor makes pictures of another size
            or other tokens than the tower.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    # All of the last state is read, whatever the tower.
    read = tower_facts(
        {
            "vision_config": {"model_type": "siglip_vision_model", **tower},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        }
    )
    text = decoder_facts(config)
    aligner = text.hidden * (read.features + text.hidden)
    return fixed_facts(checkpoint, read.side, read.tokens, read.weights + aligner, 100015)


def fixed_facts(
    checkpoint: Checkpoint,
    side: int,
    tokens: int,
    vision: int,
    image_token_id: int,
    images: ImageSpec | None = None,
) -> ModelFacts:
    """The facts of a tower that sees each picture whole, whose processor counts its tokens.

    Args:
        checkpoint: Its JSON.
        side: Height and width in pixels of the picture the tower takes.
        tokens: Feature rows it makes.
        vision: Numbers in tower and projector.
        image_token_id: The configuration class's own.
        images: How pictures are prepared; None: as its processor makes them all one size.

    Raises:
        VlmcError: The processor makes another size, or counts other tokens.
    """
    config = checkpoint.config
    at = "processor_config.json"
    said = whole(checkpoint.processor, "num_image_tokens", 576, at=at)
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for an image, the model makes {tokens}",
            at=f"{at}: num_image_tokens",
        )
    images = images or fixed_spec(checkpoint.image_processor, tokens, image_size=side)
    text = decoder_facts(config)
    # The top level decides.
    tied = config.get("tie_word_embeddings", True) is True
    found = section(config, "text_config", at=_AT)
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", image_token_id, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=WeightCounts(vision, *text_weights(found, text, tied=tied)),
    )


def vision(model: nn.Module) -> nn.Module:
    """The tower and the aligner: pixels float ``[1, 3, S, S]`` -> features ``[tokens, hidden]``.

    Mirrors ``get_image_features`` of the model inside, for one image.
    """
    from vlmc.families.towers import FixedImageFeatures

    return FixedImageFeatures(model.model)


FAMILY = Family(
    name="deepseek-vl",
    title="DeepSeek-VL",
    model_types=("deepseek_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
)
