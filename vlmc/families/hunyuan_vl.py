"""HunYuan-VL: pictures at their own size with a mark behind each row, positions of several axes.

Mirrors ``transformers.models.hunyuan_vl`` (``HunYuanVLForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
# Older names of the decoder's sizes.
_ALIASES = {"attention_head_dim": "head_dim", "org_vocab_size": "vocab_size"}
_TAPS = {"bilinear": 2, "bicubic": 4}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a HunYuan-VL checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, the processor counts other tokens
            than the tower makes, or the decoder has no axes for pictures.
    """
    config = checkpoint.config
    # Older checkpoints are flat: the decoder's keys lie at the top level.
    nested = section(config, "text_config", at=_AT) or config
    text = {**nested, **{new: nested[old] for old, new in _ALIASES.items() if old in nested}}
    tower = section(config, "vision_config", at=_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    mode = word(tower, "interpolate_mode", "bilinear", _TAPS, at=_TOWER_AT)
    side = whole(tower, "max_image_size", 2048, at=_TOWER_AT, least=patch) // patch
    if checkpoint.processor.get("cat_extra_token", True) is not True:
        raise VlmcError(
            "the processor counts no tokens before and behind a picture, the tower makes one each",
            at="processor_config.json: cat_extra_token",
        )
    width = whole(text, "hidden_size", 4096, at=_TEXT_AT)
    frames = whole(tower, "temporal_patch_size", 1, at=_TOWER_AT)
    if frames != 1:
        raise VlmcError(f"'temporal_patch_size' is {frames}; pictures have 1 frame", at=_TOWER_AT)
    seen = {**tower, "temporal_patch_size": frames, "features": width}
    given = {"tie_word_embeddings": True, **config, "vision_config": seen, "text_config": text}
    found = grid_facts(
        replace(checkpoint, config=given),
        "hunyuan_vl_text",
        width_key="features",
        count=_count_vision,
        patch=16,
        image_token=120120,
        table={"side": side, "taps": _TAPS[mode], "centers": "halves"},
        row_ends=True,
    )
    axes: Json = {"axes": _axes(text)}
    return replace(found, positions=PositionSpec(scheme="xdrope", options=axes))


def _axes(text: Json) -> int:
    """How many axes of positions the decoder's rotary embedding has."""
    rotary = text.get("rope_parameters") or text.get("rope_scaling") or {}
    at = f"{_TEXT_AT}: rope_parameters"
    if not isinstance(rotary, dict):
        raise VlmcError(f"{rotary!r} is not a mapping", at=at)
    parts = rotary.get("mrope_section") or rotary.get("xdrope_section")
    if not isinstance(parts, list) or len(parts) < 3:
        raise VlmcError(
            f"'mrope_section' is {parts!r}: pictures need three axes of positions or more", at=at
        )
    return len(parts)


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "num_hidden_layers", 27, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 4304, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    side = whole(tower, "max_image_size", 2048, at=_TOWER_AT) // patch
    merge = whole(tower, "spatial_merge_size", 2, at=_TOWER_AT)
    blocks = depth * width * (4 * width + 2 * inner)
    merger = 2 * width**2 * (merge**2 + 4) + 4 * width * hidden
    return blocks + width * (3 * patch**2 + side**2) + merger


def vision(model: nn.Module) -> nn.Module:
    """The tower with its merger, for one image.

    Takes patches float ``[P, 3*p*p]``, what each takes of the table of positions, and the order of
    rows and marks int64 ``[tokens]``; gives features ``[tokens, hidden]``.
    """
    from vlmc.families.hunyuan_modules import RowEndedFeatures

    return RowEndedFeatures(model.model.vision_tower)  # type: ignore[union-attr]


FAMILY = Family(
    name="hunyuan-vl",
    title="HunYuan-VL and HunyuanOCR",
    model_types=("hunyuan_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "image_tokens": 29},
    plain_image="{image_start_token}{image}{image_end_token}",
    special_tokens=False,
)
