"""Idefics2: pictures near their own size, a SigLIP-like tower, a perceiver of a few tokens each.

Mirrors ``transformers.models.idefics2`` (``Idefics2ForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.quarters_processor import quarters_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import TEXT_DEFAULTS, text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"
_PERCEIVER_AT = f"{_AT}: perceiver_config"
# What Idefics2Config builds where there is no text_config at all.
_TEXT: Json = {"model_type": "mistral", "max_position_embeddings": 32768}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an Idefics2 checkpoint.

    Raises:
        VlmcError: Perceiver and processor disagree on a picture's tokens, or a size makes no sense.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    perceiver = section(config, "perceiver_config", at=_AT)
    patch = whole(tower, "patch_size", 32, at=_TOWER_AT)
    whole(tower, "image_size", 224, at=_TOWER_AT, least=patch)
    latents = whole(perceiver, "resampler_n_latents", 64, at=_PERCEIVER_AT)
    said = whole(checkpoint.processor, "image_seq_len", 64, at="processor_config.json")
    if said != latents:
        raise VlmcError(
            f"'image_seq_len' is {said}, the perceiver makes {latents} tokens",
            at="processor_config.json",
        )
    images = quarters_spec(checkpoint.image_processor, latents, patch_size=patch)
    decoder = _TEXT if config.get("text_config") is None else section(config, "text_config", at=_AT)
    text = text_facts(decoder, str(decoder.get("model_type") or "mistral"))

    def counted(height: int, width: int) -> int:
        made = image_tokens(height, width, images)
        return made + made // latents + 1

    parts = 5 if images.options["split"] else 1
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 32001, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=counted,
        min_image_tokens=parts * (latents + 1) + 1,
        weights=_count(config, decoder, tower, perceiver, text),
        image_layout=_layout(checkpoint.tokenizer_config),
    )


def _layout(tokenizer: Json) -> ImageLayout:
    """As ``Idefics2Processor`` writes it: a mark before each part, and behind the last."""
    edge = "<fake_token_around_image>"
    extra = tokenizer.get("extra_special_tokens")
    named = {**tokenizer, **(extra if isinstance(extra, dict) else {})}
    if "image_token" in named:
        edge = "{image_boundary_token}"
    return ImageLayout(tile=edge, whole=edge, end=edge, edge=edge)


def _count(
    config: Json, decoder: Json, tower: Json, perceiver: Json, text: TextFacts
) -> WeightCounts:
    layers = whole(tower, "num_hidden_layers", 12, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 3072, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 32, at=_TOWER_AT)
    places = (whole(tower, "image_size", 224, at=_TOWER_AT) // patch) ** 2
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + places)
    known = TEXT_DEFAULTS.get(text.model_type)
    default = known.intermediate if known else 4 * text.hidden
    middle = whole(decoder, "intermediate_size", default, at=f"{_AT}: text_config")
    projection = middle * (2 * width + text.hidden)
    depth = whole(perceiver, "resampler_depth", 3, at=_PERCEIVER_AT, most=MAX_LAYERS)
    heads = whole(perceiver, "resampler_n_heads", 16, at=_PERCEIVER_AT)
    keys = whole(perceiver, "num_key_value_heads", 4, at=_PERCEIVER_AT)
    size = whole(perceiver, "resampler_head_dim", 96, at=_PERCEIVER_AT)
    resampler = depth * text.hidden * (2 * size * (heads + keys) + 12 * text.hidden)
    # The top level decides, and says no where it says nothing.
    tied = config.get("tie_word_embeddings") is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(encoder + projection + resampler, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Idefics2Model.text_model``."""
    return model.model.text_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower and connector, for one picture.

    Takes patches float ``[P, 3*p*p]``, their places float ``[P, 2]`` and the parts they belong to
    int64 ``[parts, slots]``; gives features ``[rows, hidden]``.
    """
    from vlmc.families.idefics2_modules import ResampledFeatures

    return ResampledFeatures(model.model)


FAMILY = Family(
    name="idefics2",
    title="Idefics2",
    model_types=("idefics2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 37, "tiles": 5, "slots": 11},
    plain_image="<image>",
    extra_tokens=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
)
