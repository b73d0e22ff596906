"""LFM2-VL: a SigLIP 2 tower on tiles, a decoder of short convolutions and some attention.

Mirrors ``transformers.models.lfm2_vl`` (``Lfm2VlForConditionalGeneration``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.grid_processors import naflex_spec
from vlmc.families.llava import decoder
from vlmc.families.spec import (
    Checkpoint,
    Family,
    ModelFacts,
    StateFacts,
    TextFacts,
    WeightCounts,
)
from vlmc.families.text import text_facts
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT = f"{_AT}: text_config"
_VISION = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an LFM2-VL checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, a size makes no sense, or a layer
            is of another kind.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    text = text_facts(found, str(found.get("model_type") or "lfm2"))
    tower = section(config, "vision_config", at=_AT)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    places = whole(tower, "num_patches", 256, at=_VISION)
    side = math.isqrt(places)
    if side * side != places:
        raise VlmcError(f"{places} positions do not make a square", at=f"{_VISION}: num_patches")
    merge = whole(config, "downsample_factor", 2, at=_AT)
    images = naflex_spec(
        checkpoint.image_processor,
        patch,
        merge,
        side,
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    kinds = _kinds(found, text.layers)
    width = max(1, whole(found, "conv_L_cache", 3, at=_TEXT) - 1)  # inputs before a token's own
    states = [at for at, kind in enumerate(kinds) if kind == "conv"]
    least: Any = images.options["min_tokens"]
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 396, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        # With the marks at its ends; those of tiles are left out.
        image_tokens=lambda height, width: image_tokens(height, width, images) + 2,
        min_image_tokens=int(least) + 2,
        weights=_count(config, found, tower, text, len(states)),
        multiples={"patches": merge**2},
        states=tuple(StateFacts(layer, (text.hidden, width)) for layer in states),
        image_layout=_layout(checkpoint),
    )


def _kinds(config: Json, layers: int) -> list[str]:
    """The kind of each layer: ``conv`` or ``full_attention``."""
    kinds = config.get("layer_types")
    if kinds is None:
        chosen = config.get("full_attn_idxs")
        chosen = list(range(layers)) if chosen is None else chosen
        if not isinstance(chosen, list):
            at = f"{_TEXT}: full_attn_idxs"
            raise VlmcError(f"{chosen!r} is not a list of layers", at=at)
        kinds = ["full_attention" if at in chosen else "conv" for at in range(layers)]
    at, known = f"{_TEXT}: layer_types", ("conv", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise VlmcError(f"{kinds!r} does not name the kind of {layers} layers", at=at)
    for kind in kinds:
        if kind not in known:
            raise VlmcError(f"a layer is of the kind {kind!r}", at=at, allowed=known)
    return kinds


def _layout(checkpoint: Checkpoint) -> ImageLayout:
    """As ``Lfm2VlProcessor._build_image_tokens`` writes it."""
    given = checkpoint.tokenizer_config
    named = given.get("extra_special_tokens")
    given = {**(named if isinstance(named, dict) else {}), **given}

    def token(name: str, default: str) -> str:
        value = given.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else default

    cut = checkpoint.image_processor.get("use_thumbnail") is not False
    return ImageLayout(
        start=token("image_start_token", "<|image_start|>"),
        tile="<|img_row_{row}_col_{column}|>",
        before_whole=token("image_thumbnail_token", "<|img_thumbnail|>") if cut else "",
        end=token("image_end_token", "<|image_end|>"),
    )


def _count(config: Json, found: Json, tower: Json, text: TextFacts, conv: int) -> WeightCounts:
    depth = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_VISION)
    inner = whole(tower, "intermediate_size", 3072, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    merged = width * whole(config, "downsample_factor", 2, at=_AT) ** 2
    between = whole(config, "projector_hidden_size", 2560, at=_AT)
    places = whole(tower, "num_patches", 256, at=_VISION)
    vision = width * (depth * (4 * width + 2 * inner) + 3 * patch * patch + places)
    attention = text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    layers = conv * 4 * text.hidden + (text.layers - conv) * attention
    language = text.hidden * (layers + text.layers * 3 * _inner(found))
    table = text.vocab * text.hidden
    tied = config.get("tie_embedding", config.get("tie_word_embeddings")) is not False
    head = 0 if tied else table
    return WeightCounts(vision + between * (merged + text.hidden), language, table, head)


def _inner(found: Json) -> int:
    """The feed-forward's width, as ``Lfm2MLP`` derives it."""
    key = "block_ff_dim" if "block_ff_dim" in found else "intermediate_size"
    inner = whole(found, key, 12288, at=_TEXT)
    if found.get("block_auto_adjust_ff_dim", True) is not True:
        return inner
    factor, multiple = found.get("block_ffn_dim_multiplier", 1.0), found.get("block_multiple_of")
    inner = int(2 * inner / 3)
    if isinstance(factor, int | float):
        inner = int(factor * inner)
    step = multiple if isinstance(multiple, int) and multiple > 0 else 256
    return step * -(-inner // step)


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image; see ``vlmc.runtime.images.naflex.prepare``."""
    from vlmc.families.grid_towers import NaflexImageFeatures

    return NaflexImageFeatures(model)


FAMILY = Family(
    name="lfm2-vl",
    title="LFM2-VL",
    model_types=("lfm2_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "tiles": 3, "slots": 35},
    plain_image="<image>",
    special_tokens=False,
)
