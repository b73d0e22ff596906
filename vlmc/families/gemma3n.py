"""Gemma 3n: MobileNetV5 and a decoder of several streams, some layers reading others' keys.

Mirrors ``transformers.models.gemma3n`` (``Gemma3nForConditionalGeneration``), for text and
pictures: the tower of sounds is left out, its table of marks is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole, word
from vlmc.families.gemma4 import key_owners
from vlmc.families.image_processors import fixed_spec
from vlmc.families.mobilenet_v5 import Network, network, numbers
from vlmc.families.paligemma import logits
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import layer_kinds, text_facts
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_SLIDING, _FULL = "sliding_attention", "full_attention"
_LAYOUT = ImageLayout(start="\n\n{boi_token}", end="{eoi_token}\n\n")
# Tokens around a picture's own: begin, end and two line breaks.
_MARKS = 4


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Gemma 3n checkpoint.

    Raises:
        VlmcError: The tower is none of MobileNetV5's, tower, configuration and processor disagree
            on a picture's tokens, or layers share keys and values that none has.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    word(found, "model_type", "gemma3n_text", ("gemma3n_text",), at=_TEXT_AT)
    text = text_facts(found, "gemma3n_text")
    tower = section(config, "vision_config", at=_AT)
    made = _network(tower)
    tokens = whole(config, "vision_soft_tokens_per_image", 256, at=_AT)
    _agree(tower, made, tokens)
    said = whole(checkpoint.processor, "image_seq_length", 256, at="processor_config.json")
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a picture, the model makes {tokens}",
            at="processor_config.json: image_seq_length",
        )
    images = fixed_spec(checkpoint.image_processor, tokens)
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 262145, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images) + _MARKS,
        min_image_tokens=tokens,
        weights=_count(config, found, made, text),
        image_layout=_LAYOUT,
        looks_up_tokens=True,  # marks and pictures go through one projection
        owners=key_owners(found, _kinds(found, text.layers)),
    )


def _network(tower: Json) -> Network:
    architecture = tower.get("architecture", "mobilenetv5_300m_enc")
    if not isinstance(architecture, str):
        raise VlmcError(f"{architecture!r} is no tower", at=f"{_TOWER_AT}: architecture")
    return network(architecture, section(tower, "model_args", at=_TOWER_AT))


def _agree(tower: Json, made: Network, tokens: int) -> None:
    """The tower's rows of features are as many, and as wide, as the model says."""
    rows = made.side[0] * made.side[1]
    if rows != tokens:
        raise VlmcError(
            f"{tokens} tokens for a picture, of which the tower makes {rows}",
            at=f"{_AT}: vision_soft_tokens_per_image",
        )
    if (wide := whole(tower, "hidden_size", 2048, at=_TOWER_AT)) != made.features:
        raise VlmcError(
            f"features of {wide}, but the tower makes {made.features}",
            at=f"{_TOWER_AT}: hidden_size",
        )


def _kinds(found: Json, layers: int) -> list[str]:
    """The kind of every layer."""
    default = [_SLIDING if (layer + 1) % 5 else _FULL for layer in range(layers)]
    layer_kinds(found, default, (_SLIDING, _FULL), at=_TEXT_AT)
    given = found.get("layer_types")
    kinds = [str(kind) for kind in given] if isinstance(given, list) else default
    if len(kinds) != layers:
        at = f"{_TEXT_AT}: layer_types"
        raise VlmcError(f"{len(kinds)} kinds for {layers} layers", at=at)
    return kinds


def _count(config: Json, found: Json, made: Network, text: TextFacts) -> WeightCounts:
    inner = found.get("intermediate_size", 16384)
    widths = inner if isinstance(inner, list) else [inner] * text.layers
    small = whole(found, "hidden_size_per_layer_input", 256, at=_TEXT_AT)
    rows = whole(found, "vocab_size_per_layer_input", 262144, at=_TEXT_AT)
    rank = whole(found, "laurel_rank", 64, at=_TEXT_AT)
    streams = whole(found, "altup_num_inputs", 4, at=_TEXT_AT)
    kept = text.layers - whole(found, "num_kv_shared_layers", 15, at=_TEXT_AT, least=0)
    heads = 2 * text.head_dim * (text.heads * text.layers + text.kv_heads * kept)
    each = 2 * rank + 3 * small + streams  # laurel, per-layer inputs, the streams' router
    of_layers = heads + text.layers * each + 3 * sum(w for w in widths if isinstance(w, int))
    language = text.hidden * (of_layers + 2 * (streams - 1) * text.hidden)
    table = text.vocab * text.hidden
    tied = config.get("tie_word_embeddings") is not False
    vision = numbers(made) + made.features * text.hidden
    return WeightCounts(vision, language, table + rows * small * text.layers, 0 if tied else table)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack; layers without keys and values of their own see a step's last token."""
    from vlmc.families.gemma3n_modules import prepare_decoder

    return prepare_decoder(model)


def vision(model: nn.Module) -> nn.Module:
    """Tower and projection of one picture."""
    from vlmc.families.gemma3n_modules import prepare_tower
    from vlmc.families.towers import FixedImageFeatures

    return FixedImageFeatures(prepare_tower(model))


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """What the decoder is given for tokens, per-layer embeddings among it."""
    from vlmc.families.gemma3n_modules import token_inputs

    return token_inputs(model, values, ids, is_image)


def tower(config: Any) -> nn.Module:
    """The tower of a vision configuration, which transformers would ask timm for.

    Raises:
        VlmcError: It is none of MobileNetV5's, or an argument is not known.
    """
    from vlmc.families.mobilenet_v5_modules import MobileNetV5

    return MobileNetV5(network(config.architecture, config.model_args or {}))


FAMILY = Family(
    name="gemma3n",
    title="Gemma 3n",
    model_types=("gemma3n",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
    logits=logits,
    embeds=embeds,
    timm_tower=tower,
)
