"""Gemma 3: a SigLIP tower, pooled and projected; attention inside an image goes both ways.

Mirrors ``transformers.models.gemma3`` (``Gemma3ForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, MaskSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.image_processors import fixed_spec
from vlmc.families.pan_and_scan_processor import pan_and_scan_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import layer_kinds, text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_SLIDING, _FULL = "sliding_attention", "full_attention"
_BEGIN, _END = "\n\n{boi_token}", "{eoi_token}\n\n"
_LAYOUT = ImageLayout(
    placeholder="{boi_token}",
    before_whole="Here is the original image ",
    whole=_BEGIN,
    end=_END,
    after_whole=" and here are some crops to help you see better ",
    tile=_BEGIN,
    tile_end=_END,
    between=" ",
)
# Tokens around a picture's own: begin, end and two line breaks.
_MARKS = 4


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Gemma 3 checkpoint.

    Raises:
        VlmcError: Tower, projector and processor disagree on a picture's size or tokens, or the
            decoder attends both ways in texts too.
    """
    config = checkpoint.config
    decoder = section(config, "text_config", at=_AT)
    word(decoder, "model_type", "gemma3_text", ("gemma3_text",), at=_TEXT_AT)
    text = text_facts(decoder, "gemma3_text")
    side, grid, tower = tower_facts(section(config, "vision_config", at=_AT))
    tokens = _pooled(whole(config, "mm_tokens_per_image", 256, at=_AT), grid)
    said = whole(checkpoint.processor, "image_seq_length", 256, at="processor_config.json")
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a picture, the model makes {tokens}",
            at="processor_config.json: image_seq_length",
        )
    # The processor always converts pictures, whatever its image processor's own file says.
    processor = {**checkpoint.image_processor, "do_convert_rgb": True}
    crops = checkpoint.image_bounds.get("max_tiles")
    if crops is None:
        images = fixed_spec(processor, tokens, image_size=side)
    else:
        images = pan_and_scan_spec(processor, tokens, image_size=side, max_tiles=crops)
    return ModelFacts(
        text=text,
        image_token_id=whole(config, _image_key(config), 262144, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images) + _MARKS,
        min_image_tokens=tokens,
        weights=_count(config, decoder, text, tower),
        masks=masks(decoder, text.layers),
        image_layout=_LAYOUT,
    )


def tower_facts(tower: Json) -> tuple[int, int, tuple[int, int]]:
    """A SigLIP tower's side in pixels, its patches along a side, and (width, matrix numbers).

    Raises:
        VlmcError: It is another tower, or its sizes make no sense.
    """
    word(tower, "model_type", "siglip_vision_model", ("siglip_vision_model",), at=_TOWER_AT)
    side = whole(tower, "image_size", 224, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    if patch > side:
        raise VlmcError(f"a patch of {patch} pixels in an image of {side}", at=_TOWER_AT)
    layers = whole(tower, "num_hidden_layers", 12, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 3072, at=_TOWER_AT)
    numbers = layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    return side, side // patch, (width, numbers)


def _pooled(wanted: int, grid: int) -> int:
    """Feature rows of a picture, as ``Gemma3MultiModalProjector`` pools its patches."""
    along = int(wanted**0.5)
    if along > grid:
        raise VlmcError(
            f"{wanted} tokens of a picture of {grid} x {grid} patches",
            at=f"{_AT}: mm_tokens_per_image",
        )
    size = grid // along
    return int((grid // size) ** 2)


def _image_key(config: Json) -> str:
    return "image_token_id" if config.get("image_token_id") is not None else "image_token_index"


def masks(decoder: Json, layers: int) -> tuple[MaskSpec, ...]:
    """The masks of the decoder's kinds of layers, with the configuration class's defaults.

    Raises:
        VlmcError: Its texts attend both ways too.
    """
    if decoder.get("use_bidirectional_attention"):
        raise VlmcError(
            "a decoder whose texts attend both ways generates nothing",
            at=f"{_TEXT_AT}: use_bidirectional_attention",
        )
    pattern = whole(decoder, "sliding_window_pattern", 6, at=_TEXT_AT)
    default = [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(layers)]
    found = []
    for kind in layer_kinds(decoder, default, (_SLIDING, _FULL), at=_TEXT_AT):
        window = whole(decoder, "sliding_window", 4096, at=_TEXT_AT) if kind == _SLIDING else None
        name = "sliding_attention_bias" if kind == _SLIDING else "attention_bias"
        found.append(MaskSpec(layers=kind, input=name, spans="images", window=window))
    return tuple(found)


def _count(config: Json, decoder: Json, text: TextFacts, tower: tuple[int, int]) -> WeightCounts:
    width, numbers = tower
    tied = config.get("tie_word_embeddings", True) is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(numbers + width * text.hidden, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Gemma3Model.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower and projector: float ``[crops, 3, S, S]`` -> features ``[tokens, hidden]``.

    Mirrors ``Gemma3Model.get_image_features`` for a picture and its crops.
    """
    from vlmc.families.towers import TiledImageFeatures

    return TiledImageFeatures(model)


FAMILY = Family(
    name="gemma3",
    title="Gemma 3",
    model_types=("gemma3",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="{image}",
)
