"""Qwen3-VL: Qwen2-VL with a tower of learned positions, and features for several layers.

Mirrors ``transformers.models.qwen3_vl`` (``Qwen3VLForConditionalGeneration``).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_VISION = "config.json: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen3-VL checkpoint.

    Raises:
        VlmcError: As for Qwen2-VL; or the tower's positions make no square.
    """
    return deepstack_facts(checkpoint, "qwen3_vl_text")


def deepstack_facts(
    checkpoint: Checkpoint, text_type: str, *, image_token: int = 151655
) -> ModelFacts:
    """What a plan needs of a Qwen3-VL, whatever its decoder.

    Args:
        checkpoint: Its JSON files.
        text_type: The decoder's kind.
        image_token: The default of ``image_token_id``.

    Raises:
        VlmcError: As ``facts``.
    """
    tower = section(checkpoint.config, "vision_config", at="config.json")
    chosen = len(_deepstack(tower))
    return table_facts(checkpoint, text_type, deepstack=chosen, image_token=image_token)


def table_facts(
    checkpoint: Checkpoint, text_type: str, *, deepstack: int = 0, image_token: int = 151655
) -> ModelFacts:
    """What a plan needs of a model with Qwen3-VL's tower.

    Args:
        checkpoint: Its JSON files.
        text_type: The decoder's kind.
        deepstack: How many of the tower's layers give deep-stack features.
        image_token: The default of ``image_token_id``.

    Raises:
        VlmcError: As ``facts``.
    """
    tower = section(checkpoint.config, "vision_config", at="config.json")
    places = whole(tower, "num_position_embeddings", 2304, at=_VISION)
    side = math.isqrt(places)
    if side * side != places:
        at = f"{_VISION}: num_position_embeddings"
        raise VlmcError(f"{places} positions do not make a square", at=at)
    return grid_facts(
        checkpoint,
        text_type,
        width_key="out_hidden_size",
        count=partial(_count_vision, mergers=1 + deepstack),
        table={"side": side, "taps": 2, "centers": "corners"},
        deepstack=deepstack,
        patch=16,
        image_token=image_token,
    )


def _deepstack(tower: Json) -> set[int]:
    """The tower's layers whose output becomes deep-stack features."""
    depth = whole(tower, "depth", 27, at=_VISION, most=MAX_LAYERS)
    chosen = tower.get("deepstack_visual_indexes", [8, 16, 24])
    if not isinstance(chosen, list) or not all(type(layer) is int for layer in chosen):
        at = f"{_VISION}: deepstack_visual_indexes"
        raise VlmcError(f"{chosen!r} is not a list of layers", at=at)
    return {layer for layer in chosen if 0 <= layer < depth}


def _count_vision(tower: Json, hidden: int, *, mergers: int) -> int:
    depth = whole(tower, "depth", 27, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=_VISION)
    inner = whole(tower, "intermediate_size", 4304, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    places = whole(tower, "num_position_embeddings", 2304, at=_VISION)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (4 * width + 2 * inner)
    return (
        blocks
        + (3 * frames * patch * patch + places) * width
        + (mergers * merged * (merged + hidden))
    )


def vision(model: nn.Module) -> nn.Module:
    """The tower with its mergers, for one image.

    Takes patches float ``[P, C*T*p*p]``, their places int64 ``[P, 2]``, and the rows of the table
    of positions that each takes, int64 and float ``[P, 4]``; gives features
    ``[P / merge**2, hidden]`` and deep-stack features ``[P / merge**2, layers, hidden]``. Mirrors
    ``Qwen3VLVisionModel.forward`` with one segment.
    """
    from vlmc.families.grid_towers import TableGridImageFeatures

    inner: Any = model
    visual = inner.model.visual
    chosen = {layer for layer in visual.deepstack_visual_indexes if 0 <= layer < len(visual.blocks)}
    layers = inner.config.text_config.num_hidden_layers
    return TableGridImageFeatures(visual, min(len(chosen), layers))


FAMILY = Family(
    name="qwen3-vl",
    title="Qwen3-VL",
    model_types=("qwen3_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
