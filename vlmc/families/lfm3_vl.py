"""LFM3-VL: Qwen2-VL's pictures, a tower and a decoder of convolutions and some attention.

Mirrors ``transformers.models.lfm3_vl`` (``Lfm3VlForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.llava import decoder
from vlmc.families.qwen2_vl import grid_facts
from vlmc.families.spec import (
    Checkpoint,
    Family,
    ModelFacts,
    StateFacts,
    TextFacts,
    WeightCounts,
)
from vlmc.families.text import text_facts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT = f"{_AT}: text_config"
_VISION = f"{_AT}: vision_config"
_KINDS = ("conv", "full_attention", "sliding_attention")


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an LFM3-VL checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, a size makes no sense, or a layer
            is of another kind.
    """
    config = checkpoint.config
    tower, decoder = (section(config, key, at=_AT) for key in ("vision_config", "text_config"))
    word(decoder, "model_type", "lfm3", ("lfm3",), at=_TEXT)
    text = text_facts(decoder, "lfm3")
    kernel = whole(tower, "conv_kernel_size", 3, at=_VISION)
    if kernel % 2 == 0:
        message = f"a convolution of {kernel} patches has no middle"
        raise VlmcError(message, at=f"{_VISION}: conv_kernel_size")
    heads, kv_heads = _heads(tower)
    if heads % kv_heads:
        message = f"{heads} attention heads cannot share {kv_heads} key/value heads"
        raise VlmcError(message, at=_VISION)
    found = grid_facts(
        replace(checkpoint, config={**config, "vision_config": {**tower, "width": text.hidden}}),
        "lfm3",
        width_key="width",
        count=lambda tower, _: 0,  # counted below: its projector is described elsewhere
        patch=16,
        image_token=125030,
        raster=True,
    )
    kinds = _kinds(decoder, text.layers)
    states = [layer for layer, kind in enumerate(kinds) if kind == "conv"]
    width = max(1, whole(decoder, "conv_L_cache", 7, at=_TEXT) - 1)  # inputs before a token's own
    return replace(
        found,
        positions=PositionSpec(scheme="sequential"),
        states=tuple(StateFacts(layer, (text.hidden, width)) for layer in states),
        weights=_count(config, text, len(states)),
    )


def _heads(tower: Json) -> tuple[int, int]:
    """The tower's heads, and those of its keys and values."""
    heads = whole(tower, "num_attention_heads", 16, at=_VISION)
    return heads, whole(tower, "num_key_value_heads", 8, at=_VISION)


def _kinds(config: Json, layers: int) -> list[str]:
    """The kind of each of the decoder's layers."""
    kinds = config.get("layer_types")
    if kinds is None:
        others = {2: "full_attention", 0: "sliding_attention"}
        return ["conv", *(others.get(layer % 4, "conv") for layer in range(1, layers))]
    if not isinstance(kinds, list) or len(kinds) != layers:
        message = f"{kinds!r} does not name the kind of {layers} layers"
        raise VlmcError(message, at=f"{_TEXT}: layer_types")
    for kind in kinds:
        word({"layer_types": kind}, "layer_types", "", _KINDS, at=_TEXT)
    return kinds


def _count(config: Json, text: TextFacts, states: int) -> WeightCounts:
    tower, decoder = (section(config, key, at=_AT) for key in ("vision_config", "text_config"))
    depth = whole(tower, "num_hidden_layers", 14, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_VISION)
    inner = whole(tower, "intermediate_size", 2560, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    heads, kv_heads = _heads(tower)
    kinds = tower.get("layer_types")
    given = kinds if isinstance(kinds, list) else []
    attends = given.count("full_attention") if given else len(range(2, depth, 2))
    mixing = (depth - attends) * 4 * width + attends * (2 * width + 2 * width * kv_heads // heads)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    between = whole(config, "projector_hidden_size", 4096, at=_AT)
    vision = width * (mixing + depth * 3 * inner + 3 * frames * patch * patch)
    attention = text.head_dim * (2 * text.heads + 2 * text.kv_heads) + text.heads
    layers = states * 4 * text.hidden + (text.layers - states) * attention
    fed = 3 * whole(decoder, "intermediate_size", 7680, at=_TEXT)
    table = text.vocab * text.hidden
    return WeightCounts(
        vision + between * (merged + text.hidden),
        text.hidden * (layers + text.layers * fed),
        table,
        0 if config.get("tie_word_embeddings", True) is True else table,
    )


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image.

    Takes patches float ``[P, C*T*p*p]``, their places int64 ``[P, 2]``, and which patch lies where
    int64 ``[rows, columns]``; gives features ``[P / merge**2, hidden]``. Mirrors
    ``Lfm3VlModel.get_image_features`` with one segment.
    """
    from vlmc.families.lfm3_modules import RasterImageFeatures

    return RasterImageFeatures(model)


FAMILY = Family(
    name="lfm3-vl",
    title="LFM3-VL",
    model_types=("lfm3_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "rows": 7, "columns": 11},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
