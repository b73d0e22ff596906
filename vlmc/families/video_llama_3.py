"""Video-LLaMA 3: Qwen2-VL's pictures, a SigLIP tower with rotary positions, any decoder.

Mirrors ``transformers.models.video_llama_3`` (``VideoLlama3ForConditionalGeneration``), for
pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.families.text import text_facts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Video-LLaMA 3 checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, or a size makes no sense.
    """
    config = checkpoint.config
    tower, text = (section(config, key, at=_AT) for key in ("vision_config", "text_config"))
    kind = str(text.get("model_type") or "qwen2")
    # The image processor alone knows how patches are merged; they have one frame.
    merge = whole(checkpoint.image_processor, "merge_size", 1, at="preprocessor_config.json")
    wanted = {
        "temporal_patch_size": 1,
        "spatial_merge_size": merge,
        "projected": text_facts(text, kind).hidden,
    }
    found = grid_facts(
        replace(checkpoint, config={**config, "vision_config": {**tower, **wanted}}),
        kind,
        width_key="projected",
        count=_count_vision,
        patch=16,
        centers=True,
    )
    return replace(found, positions=PositionSpec(scheme="sequential"))


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_VISION)
    inner = whole(tower, "intermediate_size", 3072, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    blocks = depth * width * (4 * width + 2 * inner)
    return blocks + 3 * patch * patch * width + hidden * (width + hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image.

    Takes patches float ``[P, C*p*p]``, their places int64 ``[P, 2]`` and, of each merged patch,
    those in its middle int64 ``[P / merge**2, 1 or 4]``; gives features ``[P / merge**2,
    hidden]``. Mirrors ``VideoLlama3Model.get_image_features`` with one segment.
    """
    from vlmc.families.grid_towers import CenteredImageFeatures

    return CenteredImageFeatures(model)


FAMILY = Family(
    name="video-llama-3",
    title="Video-LLaMA 3 (pictures)",
    model_types=("video_llama_3",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "image_tokens": 23},
    plain_image="<|image_pad|>",
)
