"""Idefics3 and SmolVLM: pictures in tiles, a SigLIP-like tower, four or more patches to a token.

Mirrors ``transformers.models.idefics3`` (``Idefics3ForConditionalGeneration``) and
``transformers.models.smolvlm`` (``SmolVLMForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.split_processors import split_spec
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import split, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"

EDGE = "<fake_token_around_image>"
LAYOUT = ImageLayout(
    tile=EDGE + "<row_{row}_col_{column}>",
    row_end="\n",
    before_whole="\n",
    whole=EDGE + "<global-img>",
    end=EDGE,
)
"""As ``Idefics3Processor.replace_image_token`` and ``SmolVLMProcessor`` write it."""


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an Idefics3 or SmolVLM checkpoint.

    Raises:
        VlmcError: Tower and processors disagree on the size of a tile or its tokens, or a size
            makes no sense.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    at = f"{_AT}: vision_config"
    side = whole(tower, "image_size", 224, at=at)
    patch = whole(tower, "patch_size", 32, at=at)
    merge = whole(config, "scale_factor", 2, at=_AT)
    if side // patch < 1 or side // patch % merge:
        raise VlmcError(
            f"{side // patch} patches a side do not divide into squares of {merge}", at=at
        )
    count = (side // patch // merge) ** 2
    said = whole(checkpoint.processor, "image_seq_len", 169, at="processor_config.json")
    if said != count:
        raise VlmcError(
            f"'image_seq_len' is {said}, the tower makes {count} tokens of a tile",
            at="processor_config.json",
        )
    images = split_spec(checkpoint.image_processor, count, image_size=side)
    # As text: there a list may stand for a tuple.
    options = split.Options.model_validate_json(json.dumps(images.options))
    decoder = section(config, "text_config", at=_AT)
    text = text_facts(decoder, str(decoder.get("model_type") or "llama"))

    def image_tokens(height: int, width: int) -> int:
        return _prompt_tokens(height, width, options)

    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 128257, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=image_tokens,
        # A point, or a line of the longest edge.
        min_image_tokens=min(image_tokens(1, 1), image_tokens(1, split.MAX_EDGE)),
        weights=_count(config, decoder, tower, text),
        image_layout=LAYOUT,
    )


def _prompt_tokens(height: int, width: int, options: split.Options) -> int:
    """Tokens of a picture with those around its tiles, where each mark is one token."""
    rows, columns = split.tile_grid(height, width, options)
    marks = rows * (2 * columns + 1) + (1 if rows else 0) + 3
    return split.tokens(height, width, options) + marks


def _count(config: Json, decoder: Json, tower: Json, text: TextFacts) -> WeightCounts:
    at = f"{_AT}: vision_config"
    layers = whole(tower, "num_hidden_layers", 12, at=at, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=at)
    inner = whole(tower, "intermediate_size", 3072, at=at)
    patch = whole(tower, "patch_size", 32, at=at)
    places = (whole(tower, "image_size", 224, at=at) // patch) ** 2
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + places)
    connector = width * whole(config, "scale_factor", 2, at=_AT) ** 2 * text.hidden
    # The top level decides, and says no where it says nothing.
    tied = config.get("tie_word_embeddings") is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(encoder + connector, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Idefics3Model.text_model``."""
    return model.model.text_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower and connector: pixels float ``[tiles, 3, S, S]`` -> features ``[rows, hidden]``.

    Mirrors ``Idefics3Model.get_image_features`` for one image whose tiles are all full.
    """
    from vlmc.families.towers import FullTileFeatures

    return FullTileFeatures(model.model)


FAMILY = Family(
    name="idefics3",
    title="Idefics3 and SmolVLM",
    model_types=("idefics3", "smolvlm"),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 13},
    plain_image="<image>",
)
