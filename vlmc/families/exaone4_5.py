"""EXAONE 4.5: Qwen2.5-VL's tower with shared keys and values, EXAONE 4, positions in a row.

Mirrors ``transformers.models.exaone4_5`` (``Exaone4_5_ForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_5_vl import vision, window_side
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_AT = "config.json"
_VISION = f"{_AT}: vision_config"
_FIRST_NAME = "exaone4_5_text"  # of its decoder, when it was released


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an EXAONE 4.5 checkpoint.

    Raises:
        VlmcError: As for Qwen2.5-VL; or the tower's heads cannot share their keys.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    heads = whole(tower, "num_heads", 16, at=_VISION)
    kv_heads = whole(tower, "num_key_value_heads", 8, at=_VISION)
    if heads % kv_heads:
        message = f"{heads} attention heads cannot share {kv_heads} key/value heads"
        raise VlmcError(message, at=_VISION)
    kind = section(config, "text_config", at=_AT).get("model_type")
    found = grid_facts(
        checkpoint,
        "exaone4" if kind in (None, _FIRST_NAME) else str(kind),
        width_key="out_hidden_size",
        count=_count_vision,
        window=window_side(tower),
        image_token=67,
    )
    return replace(found, positions=PositionSpec(scheme="sequential"))


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "depth", 32, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 3584, at=_VISION)
    inner = whole(tower, "intermediate_size", 3420, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    heads = whole(tower, "num_heads", 16, at=_VISION)
    shared = 2 * width * whole(tower, "num_key_value_heads", 8, at=_VISION) // heads
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (2 * width + shared + 3 * inner)
    return blocks + 3 * frames * patch * patch * width + merged * (merged + hidden)


FAMILY = Family(
    name="exaone4.5",
    title="EXAONE 4.5",
    model_types=("exaone4_5",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "windows": 11},
    plain_image="<vision><|image_pad|></vision>",
)
