"""GLM-4.1V: pictures at their own size, learned positions by cubic sampling, a gated merger.

Mirrors ``transformers.models.glm4v`` (``Glm4vForConditionalGeneration``) and
``transformers.models.glm46v`` with the same tower and decoder; ``glmga`` has its class and another
image processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_VISION = "config.json: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a GLM-4.1V checkpoint.

    Raises:
        VlmcError: As for Qwen2-VL; a picture of the tower's own size has no patch; or the decoder
            is of another kind, with experts say.
    """
    parts = (("vision_config", "glm4v_vision"), ("text_config", "glm4v_text"))
    # GLM-4.1V's own class makes these, whatever its file calls them.
    for part, kind in parts if checkpoint.config.get("model_type") != "glm4v" else ():
        found = section(checkpoint.config, part, at="config.json")
        word(found, "model_type", kind, (kind,), at=f"config.json: {part}")
    return sampled_facts(checkpoint, "glm4v_text", image_token=151343)


def sampled_facts(checkpoint: Checkpoint, text_type: str, *, image_token: int) -> ModelFacts:
    """The same for a decoder of any kind, and the default of ``image_token_id``.

    Raises:
        VlmcError: As for Qwen2-VL; or a picture of the tower's own size has no patch.
    """
    tower = section(checkpoint.config, "vision_config", at="config.json")
    pixels = whole(tower, "image_size", 336, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    if patch > pixels:
        raise VlmcError(f"a patch of {patch} pixels in an image of {pixels}", at=_VISION)
    return grid_facts(
        checkpoint,
        text_type,
        width_key="out_hidden_size",
        width=4096,
        count=_count_vision,
        table={"side": pixels // patch, "taps": 4, "centers": "sampled"},
        image_token=image_token,
    )


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "depth", 24, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1536, at=_VISION)
    inner = whole(tower, "intermediate_size", 13696, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    frames = whole(tower, "temporal_patch_size", 2, at=_VISION)
    side = whole(tower, "image_size", 336, at=_VISION) // patch
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    # The blocks' own feed-forward is as wide as the features; the merger's is `inner`.
    blocks = depth * width * (4 * width + 3 * hidden)
    merger = hidden * (merged + hidden + 3 * inner)
    return blocks + (3 * frames * patch * patch + side * side) * width + merger


def vision(model: nn.Module) -> nn.Module:
    """The tower with its merger, for one image.

    Takes patches float ``[P, C*T*p*p]``, their places int64 ``[P, 2]``, and the rows of the table
    of positions that each takes, int64 and float ``[P, 16]``; gives features
    ``[P / merge**2, hidden]``. Mirrors ``Glm4vVisionModel.forward`` with one segment.
    """
    from vlmc.families.grid_towers import Glm4vImageFeatures

    inner: Any = model
    return Glm4vImageFeatures(inner.model.visual)


FAMILY = Family(
    name="glm4v",
    title="GLM-4.1V and 4.6V Flash",
    model_types=("glm4v", "glm46v", "glmga"),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|begin_of_image|><|image|><|end_of_image|>",
)
