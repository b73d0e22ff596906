"""GLM-OCR: GLM-4.1V with a smaller tower, whose heads are normalized and have no learned positions.

Mirrors ``transformers.models.glm_ocr`` (``GlmOcrForConditionalGeneration``).
"""

from __future__ import annotations

from vlmc.families.configs import MAX_LAYERS, whole
from vlmc.families.qwen2_vl import decoder, grid_facts, vision
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_VISION = "config.json: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a GLM-OCR checkpoint.

    Raises:
        VlmcError: As for Qwen2-VL.
    """
    return grid_facts(
        checkpoint,
        "glm_ocr_text",
        width_key="out_hidden_size",
        width=1536,
        count=_count_vision,
        image_token=59280,
    )


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "depth", 24, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_VISION)
    inner = whole(tower, "intermediate_size", 4096, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    channels = whole(tower, "in_channels", 3, at=_VISION)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (4 * width + 3 * inner)
    merger = hidden * (merged + hidden + 3 * channels * hidden)
    return blocks + channels * frames * patch * patch * width + merger


FAMILY = Family(
    name="glm-ocr",
    title="GLM-OCR",
    model_types=("glm_ocr",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|begin_of_image|><|image|><|end_of_image|>",
)
