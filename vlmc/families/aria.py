"""Aria: large pictures on a square, a SigLIP-like tower read by queries, a mixture of experts.

Mirrors ``transformers.models.aria`` (``AriaForConditionalGeneration``). Pictures are never cut:
``AriaProcessor`` has it otherwise only where it is told to at every call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.llava import image_token_id
from vlmc.families.quarters_processor import ARIA_SIDE, filled_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"
_TEXT_AT = f"{_AT}: text_config"
_QUERIES = "projector_patch_to_query_dict"
_SIZES = "size_conversion"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an Aria checkpoint.

    Raises:
        VlmcError: Its tower is of another kind, or model and processor disagree on a picture's
            tokens.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    word(tower, "model_type", "idefics3_vision", ("idefics3_vision",), at=_TOWER_AT)
    patch = whole(tower, "patch_size", 32, at=_TOWER_AT, most=ARIA_SIDE)
    whole(tower, "image_size", 224, at=_TOWER_AT, least=patch)
    layers = whole(tower, "num_hidden_layers", 12, at=_TOWER_AT, most=MAX_LAYERS)
    _check_layer(config, layers)
    tokens = _queries(config, patch)
    said = _numbered(checkpoint.processor, _SIZES, "processor_config.json").get(ARIA_SIDE, 256)
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a picture, the model makes {tokens}",
            at=f"processor_config.json: {_SIZES}",
        )
    images = filled_spec(checkpoint.image_processor, tokens, patch_size=patch)
    found = section(config, "text_config", at=_AT)
    text = text_facts(found, "aria_text")
    experts = whole(found, "moe_num_experts", 8, at=_TEXT_AT)
    whole(found, "moe_topk", 2, at=_TEXT_AT, most=experts)
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, 9),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=_count(config, found, tower, text, experts),
    )


def _check_layer(config: Json, layers: int) -> None:
    """The model reads one hidden state of the tower."""
    layer = config.get("vision_feature_layer", -1)
    at = f"{_AT}: vision_feature_layer"
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise VlmcError(f"{layer!r} is no layer", at=at)
    if not -layers - 1 <= layer <= layers:
        raise VlmcError(f"layer {layer} of a tower of {layers} layers", at=at)


def _numbered(config: Json, key: str, at: str) -> dict[int, int]:
    """A mapping from numbers to numbers, whose keys JSON makes texts."""
    found = section(config, key, at=at)
    at = f"{at}: {key}"
    for name in found:
        if not name.isdecimal():
            raise VlmcError(f"'{name}' is no whole number", at=at)
    return {int(name): whole(found, name, at=at) for name in found}


def _queries(config: Json, patch: int) -> int:
    """How many queries read a picture, by the patches of its square."""
    known = _numbered(config, _QUERIES, _AT) or {1225: 128, 4900: 256}
    patches = (ARIA_SIDE // patch) ** 2
    if patches not in known:
        raise VlmcError(
            f"no queries for the {patches} patches of a picture of {ARIA_SIDE} pixels",
            at=f"{_AT}: {_QUERIES}",
            allowed=[str(one) for one in known],
        )
    return known[patches]


def _count(config: Json, decoder: Json, tower: Json, text: TextFacts, experts: int) -> WeightCounts:
    layers = whole(tower, "num_hidden_layers", 12, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 3072, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 32, at=_TOWER_AT)
    places = (whole(tower, "image_size", 224, at=_TOWER_AT) // patch) ** 2
    vision = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + places)
    most = max((_numbered(config, _QUERIES, _AT) or {4900: 256}).values())
    vision += width * (8 * width + text.hidden + most) + text.hidden**2
    shared = whole(decoder, "moe_num_shared_experts", 2, at=_TEXT_AT)
    narrow = whole(decoder, "intermediate_size", 4096, at=_TEXT_AT)
    # As if dense; every layer has as many experts, and a router, instead of one feed-forward.
    dense: Json = {**decoder, "intermediate_size": narrow}
    tied = config.get("tie_word_embeddings") is True
    language, embedding, head = text_weights(dense, text, tied=tied)
    extra = 3 * (experts + shared - 1) * narrow + experts
    return WeightCounts(vision, language + text.layers * text.hidden * extra, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``AriaModel.language_model``."""
    from vlmc.families.aria_modules import shared_beside

    stack: nn.Module = model.model.language_model  # type: ignore[union-attr, assignment]
    for layer in stack.layers:  # type: ignore[union-attr]
        layer.mlp.forward = partial(shared_beside, layer.mlp)
    return stack


def vision(model: nn.Module) -> nn.Module:
    """Tower and projector, for one picture.

    Takes patches float ``[P, 3*p*p]``, their places float ``[P, 2]`` and their order int64
    ``[1, P]``; gives features ``[queries, hidden]``.
    """
    from vlmc.families.aria_modules import QueriedFeatures

    inner = model.model
    patch: int = inner.config.vision_config.patch_size  # type: ignore[union-attr, assignment]
    queries: dict[int, int] = inner.config.projector_patch_to_query_dict  # type: ignore[union-attr, assignment]
    return QueriedFeatures(inner, queries[(ARIA_SIDE // patch) ** 2])


FAMILY = Family(
    name="aria",
    title="Aria",
    model_types=("aria",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 37, "tiles": 5, "slots": 11},
    plain_image="{image}",
)
