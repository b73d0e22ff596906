"""LLaVA: a CLIP or SigLIP tower, a two-layer projector, any causal decoder.

Mirrors ``transformers.models.llava`` (``LlavaForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.image_processors import fixed_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"


@dataclass(frozen=True)
class _Tower:
    """Defaults of a vision configuration class, and its tokens beside the patches."""

    image: int
    patch: int
    layers: int
    hidden: int
    intermediate: int
    extra_tokens: int


@dataclass(frozen=True)
class TowerFacts:
    """A tower as its configuration describes it.

    Attributes:
        side: Height and width in pixels of the picture it takes.
        grid: Patches along a side.
        tokens: Feature rows of a picture, after the class token is dropped or kept.
        features: Numbers in a row, all chosen layers side by side.
        weights: Numbers in its matrices.
    """

    side: int
    grid: int
    tokens: int
    features: int
    weights: int


_TOWERS = {
    "clip_vision_model": _Tower(224, 32, 12, 768, 3072, extra_tokens=1),
    "siglip_vision_model": _Tower(224, 16, 12, 768, 3072, extra_tokens=0),
}
# With no vision_config at all, LlavaConfig builds CLIP-L/14 at 336 pixels.
_CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a LLaVA checkpoint.

    Raises:
        VlmcError: Its tower is of another kind, or its processor makes pictures of another size
            than the tower takes.
    """
    config = checkpoint.config
    tower = tower_facts(config)
    images = fixed_spec(checkpoint.image_processor, tower.tokens, image_size=tower.side)
    text = decoder_facts(config)
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, 32000),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tower.tokens,
        weights=weight_counts(tower, config, text),
    )


def tower_facts(config: Json) -> TowerFacts:
    """The tower's sizes, and what is read of it.

    Raises:
        VlmcError: It is neither CLIP nor SigLIP, or a size makes no sense.
    """
    vision = section(config, "vision_config", at=_AT) or dict(_CLIP_L)
    at = f"{_AT}: vision_config"
    kind = word(vision, "model_type", "clip_vision_model", _TOWERS, at=at)
    tower = _TOWERS[kind]
    side = whole(vision, "image_size", tower.image, at=at)
    patch = whole(vision, "patch_size", tower.patch, at=at)
    layers = whole(vision, "num_hidden_layers", tower.layers, at=at, most=MAX_LAYERS)
    if patch > side:
        raise VlmcError(f"a patch of {patch} pixels in an image of {side}", at=at)
    states = len(feature_layers(config, layers))
    strategy = word(
        config, "vision_feature_select_strategy", "default", ("default", "full"), at=_AT
    )
    # The "default" strategy drops the first token, whether or not it is a class token.
    tokens = (side // patch) ** 2 + tower.extra_tokens - (strategy == "default")
    width = whole(vision, "hidden_size", tower.hidden, at=at)
    inner = whole(vision, "intermediate_size", tower.intermediate, at=at)
    weights = layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    return TowerFacts(side, side // patch, tokens, states * width, weights)


def decoder_facts(config: Json) -> TextFacts:
    """The decoder's sizes; a Llama where its kind is not said."""
    found = section(config, "text_config", at=_AT)
    return text_facts(found, str(found.get("model_type") or "llama"))


def image_token_id(config: Json, default: int) -> int:
    """The placeholder's id: ``image_token_id``, or ``image_token_index`` as it was called."""
    key = "image_token_id" if config.get("image_token_id") is not None else "image_token_index"
    return whole(config, key, default, at=_AT, least=0)


def feature_layers(config: Json, layers: int) -> tuple[int, ...]:
    """The hidden states that are read, as given; their features lie side by side.

    Raises:
        VlmcError: The tower has no such layer.
    """
    value = config.get("vision_feature_layer", -2)
    chosen = value if isinstance(value, list) else [value]
    at = f"{_AT}: vision_feature_layer"
    for layer in chosen:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise VlmcError(f"{value!r} is neither a layer nor a list of layers", at=at)
        if not -layers - 1 <= layer <= layers:
            raise VlmcError(f"layer {layer} of a tower of {layers} layers", at=at)
    if not chosen or value == 0:
        # transformers reads a lone 0 as "none given", and fails.
        raise VlmcError("no layer is chosen", at=at, hint="[0] chooses the patch embeddings")
    return tuple(chosen)


def weight_counts(tower: TowerFacts, config: Json, text: TextFacts) -> WeightCounts:
    """Numbers in the tower with a two-layer projector, and in the decoder."""
    projector = text.hidden * (tower.features + text.hidden)
    tied = True if config.get("tie_word_embeddings") is True else None
    found = section(config, "text_config", at=_AT)
    language, embedding, head = text_weights(found, text, tied=tied)
    return WeightCounts(tower.weights + projector, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``LlavaModel.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector: pixels float ``[1, 3, S, S]`` -> features ``[tokens, hidden]``.

    Mirrors ``LlavaModel.get_image_features`` for one image.
    """
    from vlmc.families.towers import FixedImageFeatures

    return FixedImageFeatures(model)


FAMILY = Family(
    name="llava",
    title="LLaVA 1.5 and its kin",
    model_types=("llava",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="<image>\n",
)
