"""Granite Docling: pages in tiles, a connector with a fixed grid, features for several layers.

Mirrors ``transformers.models.granite_docling`` (``GraniteDoclingForConditionalGeneration``) on its
coarse route, which is its processor's default.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.idefics3 import EDGE, LAYOUT, decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.families.tiles_processors import docling_tiles_spec
from vlmc.runtime.images import tiles, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"
# As ``GraniteDoclingProcessor.replace_image_token`` writes it: a single tile has no whole.
_LAYOUT = LAYOUT.model_copy(update={"alone": f"{EDGE}<row_1_col_1>", "alone_end": "\n"})


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Granite Docling checkpoint.

    Raises:
        VlmcError: Tower, connector and processors disagree on a size or on the tokens of a tile,
            or the processor asks for the fine route.
    """
    config = checkpoint.config
    tower, decoder = (section(config, key, at=_AT) for key in ("vision_config", "text_config"))
    side = whole(tower, "image_size", 512, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    merge = whole(tower, "scale_factor", 4, at=_VISION)
    if side // patch < merge or side // patch % merge:
        message = f"{side // patch} patches a side do not divide into squares of {merge}"
        raise VlmcError(message, at=_VISION)
    tokens = (side // patch // merge) ** 2
    said = whole(checkpoint.processor, "image_seq_len", 64, at="processor_config.json")
    if said != tokens:
        message = f"'image_seq_len' is {said}, the connector makes {tokens} tokens of a tile"
        raise VlmcError(message, at="processor_config.json")
    text = text_facts(decoder, "granite_docling_text")
    width = whole(tower, "out_hidden_size", 1024, at=_VISION)
    if width != text.hidden:
        message = f"the connector's features have {width} numbers, the decoder's {text.hidden}"
        raise VlmcError(message, at=f"{_VISION}: out_hidden_size")
    images = docling_tiles_spec(
        checkpoint.image_processor, tokens, max_tiles=checkpoint.image_bounds.get("max_tiles")
    )
    for key in ("height", "width"):
        if images.options[key] != side:
            message = f"tiles of {images.options[key]} pixels, the tower takes {side}"
            raise VlmcError(message, at="preprocessor_config.json: size")
    # As text: there a list may stand for a tuple.
    options = tiles.Options.model_validate_json(json.dumps(images.options))
    tied = config.get("tie_word_embeddings", True) is True
    taps = len(_taps(tower))
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 100337, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: _prompt_tokens(height, width, options),
        min_image_tokens=min(
            _cut_tokens(rows, columns, options)
            for columns in range(1, options.max_tiles + 1)
            for rows in range(1, options.max_tiles // columns + 1)
            if rows * columns >= options.min_tiles
        ),
        weights=WeightCounts(
            _count_vision(tower, text.hidden), *text_weights(decoder, text, tied=tied)
        ),
        image_layout=_LAYOUT,
        deepstack=tuple(range(1, min(taps, text.layers) + 1)),
    )


def _prompt_tokens(height: int, width: int, options: tiles.Options) -> int:
    """Tokens of a picture with those around its tiles, where each mark is one token."""
    tiles.count(height, width, options)  # a picture that would grow beyond all bounds
    return _cut_tokens(*tiles.grid(height, width, options), options)


def _cut_tokens(rows: int, columns: int, options: tiles.Options) -> int:
    cuts = rows * columns
    marks = rows * (2 * columns + 1) + (4 if cuts > 1 else 0)
    return tiles.with_whole(cuts) * options.tokens + marks


def _taps(tower: Json) -> set[int]:
    """The tower's layers whose output becomes deep-stack features."""
    layers = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    value = tower.get("deepstack_visual_indexes")
    chosen = [3, 7, 10] if value is None else value
    if not isinstance(chosen, list) or not all(type(layer) is int for layer in chosen):
        at = f"{_VISION}: deepstack_visual_indexes"
        raise VlmcError(f"{chosen!r} is not a list of layers", at=at)
    return {layer for layer in chosen if 0 <= layer < layers}


def _count_vision(tower: Json, hidden: int) -> int:
    layers = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_VISION)
    inner = whole(tower, "intermediate_size", 3072, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    places = (whole(tower, "image_size", 512, at=_VISION) // patch) ** 2
    merged = width * whole(tower, "scale_factor", 4, at=_VISION) ** 2
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + places)
    mergers = len(_taps(tower)) * hidden * (merged + hidden)
    return encoder + hidden * (merged + hidden) + mergers


def vision(model: nn.Module) -> nn.Module:
    """Tower and connector, for one image.

    Takes tiles float ``[tiles, 3, S, S]``; gives features ``[tokens, hidden]`` and deep-stack
    features ``[tokens, layers, hidden]``. Mirrors ``GraniteDoclingModel.get_image_features``.
    """
    from vlmc.families.towers import DeepTileFeatures

    inner: Any = model
    taps = len(_taps(inner.config.vision_config.to_dict()))
    layers = inner.config.text_config.num_hidden_layers
    return DeepTileFeatures(inner.model.vision_model, min(taps, layers))


def logits(model: Any, values: Tensor) -> Tensor:
    """The head's logits, scaled as ``GraniteDoclingForConditionalGeneration.forward`` does."""
    scaled: Tensor = values / model.config.text_config.logits_scaling
    return scaled


FAMILY = Family(
    name="granite-docling",
    title="Granite Docling (coarse route)",
    model_types=("granite_docling",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="<image>",
    logits=logits,
)
