"""Ovis 2: tiles whose patches are words of a visual vocabulary, mixed from a table of embeddings.

Mirrors ``transformers.models.ovis2`` (``Ovis2ForConditionalGeneration``). The table's last rows
are the embeddings of the tokens that stand around a picture's tiles.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.families.tiles_processors import ovis_tiles_spec
from vlmc.runtime.images import tiles, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"
_MARK_IDS = (151666, 151667, 151668, 151669, 151670)
# The processor writes these words, whatever its file says.
LAYOUT = ImageLayout(
    placeholder="<image>",
    start="<IMG_START>",
    end="<IMG_GRID>",
    after_whole="",
    between="<IMG_COL>",
    between_rows="<IMG_ROW>",
    close="<IMG_END>",
)
"""As ``Ovis2Processor.replace_image_token`` writes it."""


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an Ovis 2 checkpoint.

    Raises:
        VlmcError: Tower and processor disagree on the size or the tokens of a tile, widths do not
            fit each other, or the tower's words are drawn at random.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    side = whole(tower, "image_size", 224, at=_TOWER_AT)
    tokens = _tokens(tower, side)
    said = whole(checkpoint.processor, "image_seq_length", 256, at="processor_config.json")
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a tile, the model makes {tokens}",
            at="processor_config.json: image_seq_length",
        )
    word(tower, "tokenize_function", "softmax", ("softmax", "st_argmax"), at=_TOWER_AT)
    marks = _marks(config, tower)
    images = ovis_tiles_spec(
        checkpoint.image_processor,
        tokens,
        marks=whole(tower, "num_visual_indicator_tokens", 5, at=_TOWER_AT),
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    height, width = images.options["height"], images.options["width"]
    if not height == width == side:
        raise VlmcError(
            f"the processor makes tiles of {width} x {height} pixels, "
            f"the vision tower takes {side} x {side}",
            at="preprocessor_config.json: size",
        )
    decoder = section(config, "text_config", at=_AT)
    text = text_facts(decoder, str(decoder.get("model_type") or "qwen2"))
    _check_widths(config, text)
    # As text: there a list may stand for a tuple.
    options = tiles.Options.model_validate_json(json.dumps(images.options))

    def image_tokens(height: int, width: int) -> int:
        return _prompt_tokens(tiles.count(height, width, options), tokens)

    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 151665, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=image_tokens,
        min_image_tokens=_prompt_tokens(tiles.with_whole(options.min_tiles), tokens),
        weights=_count(config, tower, text),
        image_layout=LAYOUT,
        mark_token_ids=marks,
    )


def _tokens(tower: Json, side: int) -> int:
    """Tokens of a tile: each a square of ``hidden_stride`` patches."""
    patches = side // whole(tower, "patch_size", 14, at=_TOWER_AT, most=side)
    stride = whole(tower, "hidden_stride", 1, at=_TOWER_AT)
    if patches % stride:  # transformers would pad them, and fails
        raise VlmcError(
            f"{patches} patches a side do not divide into squares of {stride}",
            at=f"{_TOWER_AT}: hidden_stride",
        )
    return (patches // stride) ** 2


def _marks(config: Json, tower: Json) -> tuple[int, ...]:
    """The tokens around tiles, each with its row of the table's last ones.

    Raises:
        VlmcError: They are no list of tokens, or more than there are rows.
    """
    found = config.get("visual_indicator_token_ids")
    found = list(_MARK_IDS) if found is None else found
    at = f"{_AT}: visual_indicator_token_ids"
    if not isinstance(found, list) or not all(type(one) is int and one >= 0 for one in found):
        raise VlmcError(f"{found!r} is no list of tokens", at=at)
    rows = whole(tower, "num_visual_indicator_tokens", 5, at=_TOWER_AT)
    if len(found) > rows:
        raise VlmcError(f"{len(found)} tokens for {rows} rows of the visual vocabulary", at=at)
    return tuple(found)


def _check_widths(config: Json, text: TextFacts) -> None:
    """Table and head are as wide as the top level says, the decoder as its own section does."""
    width = whole(config, "hidden_size", 1536, at=_AT)
    if width != text.hidden:
        raise VlmcError(
            f"visual embeddings of {width} numbers for a decoder of {text.hidden}",
            at=f"{_AT}: hidden_size",
        )
    vocab = whole(config, "vocab_size", 151643, at=_AT)
    if config.get("tie_word_embeddings") is False and vocab != text.vocab:
        raise VlmcError(
            f"the head gives {vocab} tokens, the decoder knows {text.vocab}",
            at=f"{_AT}: vocab_size",
        )


def _prompt_tokens(count: int, tokens: int) -> int:
    """Tokens of a picture with the marks around its tiles, where each mark is one token."""
    # Three at the ends; between the tiles of a grid, one fewer than they are.
    return count * tokens + 3 + max(count - 2, 0)


def _count(config: Json, tower: Json, text: TextFacts) -> WeightCounts:
    layers = whole(tower, "num_hidden_layers", 24, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 2816, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    stride = whole(tower, "hidden_stride", 1, at=_TOWER_AT)
    words = whole(tower, "vocab_size", 16384, at=_TOWER_AT)
    places = (whole(tower, "image_size", 224, at=_TOWER_AT) // patch) ** 2
    encoder = width * (layers * (4 * width + 3 * inner) + 3 * patch * patch + places)
    vocabulary = words * (stride * stride * width + text.hidden)
    decoder = section(config, "text_config", at=_AT)
    tied = config.get("tie_word_embeddings", True) is True
    language, embedding, head = text_weights(decoder, text, tied=tied)
    return WeightCounts(encoder + vocabulary, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Ovis2Model.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower and table: float ``[tiles, 3, S, S]`` -> ``[tokens + marks, hidden]``.

    Mirrors ``Ovis2Model.get_image_features`` for the tiles of one image.
    """
    from vlmc.families.ovis2_modules import MarkedTileFeatures

    return MarkedTileFeatures(model)


FAMILY = Family(
    name="ovis2",
    title="Ovis 2",
    model_types=("ovis2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="<image>\n",
)
