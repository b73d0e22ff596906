"""PaddleOCR-VL: Qwen2-VL's pictures, a SigLIP tower with learned and rotary positions, Ernie.

Mirrors ``transformers.models.paddleocr_vl`` (``PaddleOCRVLForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace
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
    """What a plan needs of a PaddleOCR-VL checkpoint.

    Raises:
        VlmcError: As for Qwen2-VL; or a picture of the tower's own size has no patch.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at="config.json")
    pixels = whole(tower, "image_size", 384, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    if patch > pixels:
        raise VlmcError(f"a patch of {patch} pixels in an image of {pixels}", at=_VISION)
    hidden = whole(
        section(config, "text_config", at="config.json"), "hidden_size", 1024, at=_VISION
    )
    # The projector's features are as wide as the decoder; one frame is all that a patch has.
    given = {**tower, "temporal_patch_size": 1, "projected": hidden}
    found = grid_facts(
        replace(checkpoint, config={**config, "vision_config": given}),
        "paddleocr_vl_text",
        width_key="projected",
        count=_count_vision,
        table={"side": pixels // patch, "taps": 2, "centers": "halves"},
        image_token=100295,
    )
    assert found.weights is not None
    if config.get("tie_word_embeddings", True) is False:
        return found
    return replace(found, weights=replace(found.weights, head=0))


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "num_hidden_layers", 27, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=_VISION)
    inner = whole(tower, "intermediate_size", 4304, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    side = whole(tower, "image_size", 384, at=_VISION) // patch
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (4 * width + 2 * inner)
    return blocks + (3 * patch * patch + side * side) * width + merged * (merged + hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image.

    Takes patches float ``[P, C*p*p]``, their places int64 ``[P, 2]``, and the rows of the table of
    positions that each takes, int64 and float ``[P, 4]``, all in merged-block order; gives
    features ``[P / merge**2, hidden]``. Mirrors ``PaddleOCRVLModel.get_image_features``.
    """
    from vlmc.families.grid_towers import PaddleImageFeatures

    return PaddleImageFeatures(model)


FAMILY = Family(
    name="paddleocr-vl",
    title="PaddleOCR-VL",
    model_types=("paddleocr_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
)
