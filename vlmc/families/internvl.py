"""InternVL: a picture as a grid of tiles and a thumbnail, each a fixed number of tokens.

Mirrors ``transformers.models.internvl`` (``InternVLForConditionalGeneration``), whose checkpoints
are named ``*-hf``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.families.tiles_processors import tiles_spec
from vlmc.runtime.images import image_tokens, tiles, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an InternVL checkpoint.

    Raises:
        VlmcError: Tower and processor disagree on the size or the tokens of a tile, or the tower's
            features cannot be merged as asked.
    """
    return tiled_facts(checkpoint, "internvl_vision", "qwen2", tied=True)


def tiled_facts(
    checkpoint: Checkpoint, tower_type: str, text_type: str, *, tied: bool
) -> ModelFacts:
    """The facts of InternVL and its relatives.

    Args:
        checkpoint: Its JSON.
        tower_type: The ``model_type`` of its towers.
        text_type: That of its decoder, where it says none.
        tied: Whether the output projection is the embedding, where it does not say.

    Raises:
        VlmcError: As ``facts``.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    word(tower, "model_type", tower_type, (tower_type,), at=_TOWER_AT)
    word(config, "vision_feature_select_strategy", "default", ("default",), at=_AT)
    _check_layer(config, whole(tower, "num_hidden_layers", 24, at=_TOWER_AT, most=MAX_LAYERS))
    side, patch = _square(tower, "image_size", 448), _square(tower, "patch_size", 14)
    merge = _merge(config, side // patch)
    tokens = (side // patch // merge) ** 2
    said = whole(checkpoint.processor, "image_seq_length", 256, at="processor_config.json")
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a tile, the model makes {tokens}",
            at="processor_config.json: image_seq_length",
        )
    max_tiles = checkpoint.image_bounds.get("max_tiles")
    # InternVLProcessor always crops, whatever its image processor's own file says.
    images = tiles_spec(checkpoint.image_processor, tokens, max_tiles=max_tiles)
    height, width = images.options["height"], images.options["width"]
    if not height == width == side:
        raise VlmcError(
            f"the processor makes tiles of {width} x {height} pixels, "
            f"the vision tower takes {side} x {side}",
            at="preprocessor_config.json: size",
        )
    decoder = section(config, "text_config", at=_AT)
    text = text_facts(decoder, str(decoder.get("model_type") or text_type))
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 151667, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens * _least_tiles(images),
        weights=_count(config, tower, text, (patch, merge), tied=tied),
    )


def _least_tiles(images: ImageSpec) -> int:
    """Tiles of a picture of the smallest grid."""
    options = tiles.Options.model_validate_json(json.dumps(images.options))
    return tiles.with_whole(options.min_tiles)


def _square(tower: Json, key: str, default: int) -> int:
    """A side in pixels, written as one number or as two equal ones."""
    value = tower.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return whole({key: value[0]}, key, at=_TOWER_AT)
    return whole(tower, key, default, at=_TOWER_AT)


def _merge(config: Json, side: int) -> int:
    """Patches on a side of the blocks that the pixel shuffle merges."""
    ratio = config.get("downsample_ratio", 0.5)
    if isinstance(ratio, float | int) and 1e-3 < ratio <= 1:
        merge = int(1 / ratio)
        # transformers divides by the ratio itself, which must come out even too.
        if ratio == 1 / merge and side % ratio == 0 and side % merge == 0:
            return merge
    message = f"{ratio!r} does not divide a tile of {side} x {side} patches into whole blocks"
    raise VlmcError(message, at=f"{_AT}: downsample_ratio")


def _check_layer(config: Json, layers: int) -> None:
    layer = config.get("vision_feature_layer", -1)
    # transformers reads 0 as "none given", and fails; so it does on a list.
    if type(layer) is not int or layer == 0 or not -layers <= layer <= layers:
        message = f"{layer!r} is no layer of a tower of {layers} layers"
        raise VlmcError(message, at=f"{_AT}: vision_feature_layer")


def _count(
    config: Json, tower: Json, text: TextFacts, sides: tuple[int, int], *, tied: bool
) -> WeightCounts:
    """``sides`` are those of a patch, in pixels, and of a block, in patches."""
    patch, merge = sides
    layers = whole(tower, "num_hidden_layers", 24, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 4096, at=_TOWER_AT)
    encoder = layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    projector = text.hidden * (merge * merge * width + text.hidden)
    decoder = section(config, "text_config", at=_AT)
    tied = config.get("tie_word_embeddings", tied) is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(encoder + projector, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``InternVLModel.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower, pixel shuffle and projector: float ``[tiles, 3, S, S]`` -> ``[tokens, hidden]``.

    Mirrors ``InternVLModel.get_image_features`` for the tiles of one image.
    """
    from vlmc.families.towers import TiledImageFeatures

    return TiledImageFeatures(model)


FAMILY = Family(
    name="internvl",
    title="InternVL 3 and its kin",
    model_types=("internvl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="<IMG_CONTEXT>\n",
    image_frame=("start_image_token", "end_image_token"),
)
