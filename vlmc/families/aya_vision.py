"""Aya Vision: a picture as tiles, named one by one in the prompt, before a Cohere2 decoder.

Mirrors ``transformers.models.aya_vision`` (``AyaVisionForConditionalGeneration``).
"""

from __future__ import annotations

import json
from math import isqrt
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.llava import TowerFacts, decoder, tower_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.families.tiles_processors import tiles_spec
from vlmc.runtime.images import tiles, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_PROCESSOR_AT = "processor_config.json"
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
}
# Names in the processor's configuration, and what its class has where they are absent.
_MARKS = {
    "image_token": "<image>",
    "start_of_img_token": "<|START_OF_IMG|>",
    "end_of_img_token": "<|END_OF_IMG|>",
    "tile_token": "TILE",
    "tile_global_token": "TILE_GLOBAL",
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an Aya Vision checkpoint.

    Raises:
        VlmcError: Tower and processor disagree on the size or the tokens of a tile, or the tower's
            features cannot be merged as asked.
    """
    config = with_tower(checkpoint.config, _SIGLIP)
    layer = config["vision_feature_layer"]
    if isinstance(layer, list) and len(layer) != 1:
        # transformers builds the projector for one layer's features.
        raise VlmcError("one layer is read", at=f"{_AT}: vision_feature_layer")
    tower = tower_facts(config)
    tokens = merged_tokens(config, tower)
    processor = checkpoint.processor
    side = whole(processor, "img_size", 364, at=_PROCESSOR_AT)
    patch = whole(processor, "patch_size", 28, at=_PROCESSOR_AT)
    said = side // (patch * whole(processor, "downsample_factor", 1, at=_PROCESSOR_AT))
    if said**2 != tokens:
        raise VlmcError(
            f"the processor counts {said**2} tokens for a tile, the model makes {tokens}",
            at=f"{_PROCESSOR_AT}: img_size, patch_size",
        )
    max_tiles = checkpoint.image_bounds.get("max_tiles")
    # AyaVisionProcessor always crops, whatever its image processor's own file says.
    images = tiles_spec(checkpoint.image_processor, tokens, max_tiles=max_tiles)
    check_tile(images, tower.side)
    placeholder, start, end, tile, whole_tile = (
        _mark(processor, key, default) for key, default in _MARKS.items()
    )
    layout = ImageLayout(
        placeholder=placeholder, start=start, tile=tile + "_{number}", whole=whole_tile, end=end
    )
    adapter = config.get("alignment_intermediate_size")
    return tiled_facts(config, tower, images, layout, adapter if type(adapter) is int else None)


def _mark(processor: Json, key: str, default: str) -> str:
    """A text of the processor's, braces written as a layout has them."""
    value = processor.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or not value or "{" in value:
        raise VlmcError(f"{value!r} is no mark", at=f"{_PROCESSOR_AT}: {key}")
    return value


def with_tower(config: Json, absent: Json) -> Json:
    """The configuration in LLaVA's words, its tower written out.

    Args:
        config: ``config.json``.
        absent: The tower where there is no ``vision_config`` at all.
    """
    tower = section(config, "vision_config", at=_AT) or dict(absent)
    return {
        **config,
        "vision_config": {"model_type": "siglip_vision_model", **tower},
        "vision_feature_layer": _given(config, "vision_feature_layer", -1),
        "vision_feature_select_strategy": _given(config, "vision_feature_select_strategy", "full"),
    }


def _given(config: Json, key: str, default: object) -> object:
    value = config.get(key)
    return default if value is None else value


def merged_tokens(config: Json, tower: TowerFacts) -> int:
    """Tokens of a tile after ``downsample_factor`` squared patches became one.

    Raises:
        VlmcError: The tower's rows make no square, or one that does not divide.
    """
    factor = whole(config, "downsample_factor", 2, at=_AT)
    side = isqrt(tower.tokens)
    if side**2 != tower.tokens:
        raise VlmcError(
            f"{tower.tokens} feature rows of a tile make no square",
            at=f"{_AT}: vision_feature_select_strategy",
        )
    if side % factor:
        raise VlmcError(
            f"{side} patches a side do not divide into squares of {factor}",
            at=f"{_AT}: downsample_factor",
        )
    return (side // factor) ** 2


def check_tile(images: ImageSpec, side: int) -> None:
    """Refuses tiles of another size than the tower takes.

    Raises:
        VlmcError: They are.
    """
    height, width = images.options["height"], images.options["width"]
    if not height == width == side:
        raise VlmcError(
            f"the processor makes tiles of {width} x {height} pixels, "
            f"the vision tower takes {side} x {side}",
            at="preprocessor_config.json: size",
        )


def tiled_facts(
    config: Json, tower: TowerFacts, images: ImageSpec, layout: ImageLayout, adapter: int | None
) -> ModelFacts:
    """The facts of a tower whose tiles are merged, projected through a gate and named by marks.

    Args:
        config: As ``with_tower`` returns it.
        tower: Its tower.
        images: Geometry ``tiles``.
        layout: The text of an image.
        adapter: Width of the projector; None: the decoder's.
    """
    found = section(config, "text_config", at=_AT)
    text = text_facts(found, str(found.get("model_type") or "cohere2"))
    # As text: there a list may stand for a tuple.
    options = tiles.Options.model_validate_json(json.dumps(images.options))

    def image_tokens(height: int, width: int) -> int:
        return _prompt_tokens(tiles.count(height, width, options), options, layout)

    return ModelFacts(
        text=text,
        image_token_id=whole(
            {"image_token_id": config.get("image_token_index"), **config},
            "image_token_id",
            255036,
            at=_AT,
            least=0,
        ),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=image_tokens,
        min_image_tokens=_prompt_tokens(tiles.with_whole(options.min_tiles), options, layout),
        weights=_count(config, tower, text, adapter or text.hidden),
        image_layout=layout,
    )


def _prompt_tokens(count: int, options: tiles.Options, layout: ImageLayout) -> int:
    """Tokens of a picture with those around its tiles, where each mark is one token."""
    ends = sum(bool(text) for text in (layout.start, layout.whole, layout.end, layout.tile_end))
    marks = bool(layout.tile) + bool(layout.tile_end)
    return count * options.tokens + (count - 1) * marks + ends


def _count(config: Json, tower: TowerFacts, text: TextFacts, adapter: int) -> WeightCounts:
    merged = tower.features * whole(config, "downsample_factor", 2, at=_AT) ** 2
    projector = adapter * merged + adapter // 2 * text.hidden
    decoder = section(config, "text_config", at=_AT)
    tied = config.get("tie_word_embeddings", True) is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(tower.weights + projector, language, embedding, head)


def vision(model: nn.Module) -> nn.Module:
    """Tower, pixel shuffle and projector: float ``[tiles, 3, S, S]`` -> ``[tokens, hidden]``.

    Mirrors ``get_image_features`` for the tiles of one image.
    """
    from vlmc.families.towers import TiledImageFeatures

    return TiledImageFeatures(model)


FAMILY = Family(
    name="aya-vision",
    title="Aya Vision",
    model_types=("aya_vision",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="{image}",
)
