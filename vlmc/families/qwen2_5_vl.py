"""Qwen2.5-VL: Qwen2-VL with a tower that attends inside windows in most of its layers.

Mirrors ``transformers.models.qwen2_5_vl`` (``Qwen2_5_VLForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_VISION = "config.json: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen2.5-VL checkpoint.

    Raises:
        VlmcError: As for Qwen2-VL; or a window holds no patch, or a layer is named that is none.
    """
    return window_facts(checkpoint, "qwen2_5_vl_text")


def window_facts(checkpoint: Checkpoint, text_type: str) -> ModelFacts:
    """What a plan needs of a model with Qwen2.5-VL's tower.

    Args:
        checkpoint: Its JSON files.
        text_type: The decoder's kind.

    Raises:
        VlmcError: As ``facts``.
    """
    tower = section(checkpoint.config, "vision_config", at="config.json")
    return grid_facts(
        checkpoint,
        text_type,
        width_key="out_hidden_size",
        count=count_vision,
        window=window_side(tower),
    )


def window_side(tower: Json) -> int:
    """The side of a window in patches; whole merged patches, as ``get_vision_window_index``.

    Raises:
        VlmcError: A window holds no patch, or a layer is named that is none.
    """
    pixels = whole(tower, "window_size", 112, at=_VISION)
    merge = whole(tower, "spatial_merge_size", 2, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    merged = pixels // merge // patch
    if not merged:
        message = f"a window of {pixels} pixels is smaller than a merged patch of {merge * patch}"
        raise VlmcError(message, at=f"{_VISION}: window_size")
    full = tower.get("fullatt_block_indexes", [])
    if not isinstance(full, list) or not all(type(layer) is int for layer in full):
        raise VlmcError(f"{full!r} is not a list of layers", at=f"{_VISION}: fullatt_block_indexes")
    return merged * merge


def count_vision(tower: Json, hidden: int) -> int:
    """Numbers in the tower's weights, its features ``hidden`` wide."""
    depth = whole(tower, "depth", 32, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 3584, at=_VISION)
    inner = whole(tower, "intermediate_size", 3420, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (4 * width + 3 * inner)
    return blocks + 3 * frames * patch * patch * width + merged * (merged + hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower with its merger, for one image.

    Takes patches float ``[P, C*T*p*p]``, their places int64 ``[P, 2]``, the patches of each
    window int64 ``[windows, slots]`` (-1: none) and the slot of each patch int64 ``[P]``; gives
    features ``[P / merge**2, hidden]``. Layers with windows take memory and time in proportion to
    ``windows * slots**2``.
    """
    from vlmc.families.window_towers import WindowedImageFeatures

    return WindowedImageFeatures(model.model.visual)  # type: ignore[union-attr]


FAMILY = Family(
    name="qwen2.5-vl",
    title="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "windows": 11},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
