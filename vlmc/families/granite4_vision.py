"""Granite 4 Vision: LLaVA-NeXT's tiles, read by several projectors for several decoder layers.

Mirrors ``transformers.models.granite4_vision`` (``Granite4VisionForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.llava import tower_facts
from vlmc.families.llava_next import anyres_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_SPATIAL = (12, 15, 18, 21)
# One place in each 2 x 2 patches, one projector each.
_CORNERS = 4


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Granite 4 Vision checkpoint.

    Raises:
        VlmcError: As ``anyres_facts``, or its projectors fit neither the tower nor the decoder.
    """
    config = _filled(checkpoint.config)
    tower = tower_facts(config)
    rows = _rows(config, tower.grid)
    said = checkpoint.processor.get("downsample_rate")
    if said != config["downsample_rate"]:
        raise VlmcError(
            f"the model's is {config['downsample_rate']!r}, the processor's {said!r}",
            at="processor_config.json: downsample_rate",
        )
    found = anyres_facts(config, checkpoint.image_processor, image_token=32000, rows=rows)
    pairs = _pairs(config, _layers(config))
    chosen = _chosen(pairs, found.text.layers)
    if not chosen:
        raise VlmcError("no layer of the decoder takes image features", at=_AT)
    counts = found.weights
    if counts is not None:
        # There is a projector for each corner, used or not.
        projectors = len(pairs) - len(_spatial(config)) + _CORNERS
        vision = tower.weights + projectors * _projector(config, found.text.hidden)
        counts = replace(counts, vision=vision)
    return replace(found, deepstack=tuple(chosen), weights=counts)


def _filled(config: Json) -> Json:
    text = section(config, "text_config", at=_AT)
    # Which layers of the tower are read is said elsewhere.
    given = {**config, "vision_feature_layer": -1}
    return {**given, "text_config": {"model_type": "granite4_vision_text", **text}}


def _rows(config: Json, grid: int) -> int:
    """Feature rows along a side of a tile, once windows of it are summed up."""
    rate, at = config.get("downsample_rate"), f"{_AT}: downsample_rate"
    parts = rate.split("/") if isinstance(rate, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise VlmcError(f"{rate!r} is not a ratio such as '4/8'", at=at)
    query, window = map(int, parts)
    if not 0 < query <= window or grid % window:
        raise VlmcError(f"{rate!r} does not fit the {grid} patches of a tile's side", at=at)
    if _spatial(config) and 2 * query != window:
        raise VlmcError(f"{rate!r}, where 'spatial_target_layers' need a half", at=at)
    rows = int(grid * Fraction(query, window))
    if grid % rows:
        raise VlmcError(f"{rate!r} makes rows that share patches, not supported yet", at=at)
    return rows


def _spatial(config: Json) -> list[int]:
    value = config.get("spatial_target_layers")
    found = list(_SPATIAL) if value is None else value
    if not isinstance(found, list) or not all(type(layer) is int for layer in found):
        raise VlmcError(f"{value!r} is not a list of layers", at=f"{_AT}: spatial_target_layers")
    if len(found) > _CORNERS:
        at = f"{_AT}: spatial_target_layers"
        raise VlmcError(f"{len(found)} layers for the {_CORNERS} corners", at=at)
    return found


def _layers(config: Json) -> int:
    """Layers of the tower; ``tower_facts`` has read the rest of it."""
    tower = section(config, "vision_config", at=_AT)
    return whole(tower, "num_hidden_layers", 12 if tower else 24, at=f"{_AT}: vision_config")


def _pairs(config: Json, layers: int) -> list[tuple[int, int]]:
    """The tower's layer that each projector reads, and the decoder's that it is for."""
    value, at = config.get("deepstack_layer_map"), f"{_AT}: deepstack_layer_map"
    if not isinstance(value, list) or not all(isinstance(pair, list) for pair in value):
        raise VlmcError(f"{value!r} is not a list of pairs of layers", at=at)
    pairs = [tuple(pair) for pair in value if all(type(layer) is int for layer in pair)]
    last = config.get("spatial_vision_layer", -1)
    if len(pairs) != len(value) or any(len(pair) != 2 for pair in pairs):
        raise VlmcError(f"{value!r} is not a list of pairs of layers", at=at)
    for layer in [*(source for source, _ in pairs), last]:
        if type(layer) is not int or not -layers - 1 <= layer <= layers:
            raise VlmcError(f"layer {layer!r} of a tower of {layers} layers", at=_AT)
    return [*pairs, *((last, layer) for layer in _spatial(config))]


def _chosen(pairs: list[tuple[int, int]], layers: int) -> dict[int, int]:
    """Which projector's rows each layer of the decoder adds; the last of several counts."""
    return {layer: at for at, (_, layer) in enumerate(pairs) if 0 <= layer < layers}


def _projector(config: Json, hidden: int) -> int:
    """Numbers in the matrices of one projector."""
    tower = section(config, "vision_config", at=_AT)
    width = whole(tower, "hidden_size", 768 if tower else 1024, at=f"{_AT}: vision_config")
    former = section(config, "qformer_config", at=_AT)
    at = f"{_AT}: qformer_config"
    layers = whole(former, "num_hidden_layers", 12 if former else 1, at=at)
    inner = whole(former, "intermediate_size", 3072, at=at)
    every = whole(former, "cross_attention_frequency", 2 if former else 1, at=at)
    crossing = 4 * width * width * len(range(0, layers, every))
    return layers * (4 * width * width + 2 * width * inner) + crossing + width * hidden


def vision(model: nn.Module) -> nn.Module:
    """The tower, the projectors and the line break, for one image.

    Takes tiles float ``[tiles, 3, S, S]`` and the order of their rows int64 ``[tokens]``; gives
    features ``[tokens, hidden]``, all zero, and what layers of the decoder add, ``[tokens, layers,
    hidden]``. Mirrors ``Granite4VisionModel.get_image_features``.
    """
    from vlmc.families.anyres_towers import PackedDeepstackFeatures

    inner: Any = model.model
    config: Any = model.config
    projectors = [*inner.layerwise_projectors, *inner.spatial_projectors]
    last = config.spatial_vision_layer
    pairs = [
        *config.deepstack_layer_map,
        *((last, layer) for layer in config.spatial_target_layers),
    ]
    chosen = _chosen(pairs, config.text_config.num_hidden_layers)
    sources = [(pairs[at][0], projectors[at]) for at in chosen.values()]
    return PackedDeepstackFeatures(model, sources)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, its last hidden states scaled as the model scales its logits."""
    inner: Any = model
    scale = inner.config.text_config.logits_scaling
    language: nn.Module = inner.model.language_model
    language.norm.register_forward_hook(lambda _, __, hidden: hidden / scale)  # type: ignore[union-attr]
    return language


FAMILY = Family(
    name="granite4-vision",
    title="Granite 4 Vision",
    model_types=("granite4_vision",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3, "image_tokens": 23},
    plain_image="<image>\n",
)
