"""HyperCLOVA X SEED Think: Qwen2.5-VL's tower, a projection, HyperCLOVA X, positions in a row.

Mirrors ``transformers.models.hyperclovax_vision_v2``
(``HyperCLOVAXVisionV2ForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import PositionSpec
from vlmc.families.configs import section, whole, word
from vlmc.families.qwen2_5_vl import count_vision, window_side
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"
_TOWER = "qwen2_5_vl_vision"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a HyperCLOVA X SEED Think checkpoint.

    Raises:
        VlmcError: As for Qwen2.5-VL; or its tower or decoder is of another kind.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    # The hub's says the kind of the whole model that the tower is from.
    word(tower, "model_type", _TOWER, (_TOWER, "qwen2_5_vl"), at=_VISION)
    text = section(config, "text_config", at=_AT)
    # Others have nothing to scale the logits by.
    kind = word(
        text, "model_type", "hyperclovax", ("hyperclovax", "granite"), at=f"{_AT}: text_config"
    )
    found = grid_facts(
        checkpoint,
        kind,
        width_key="out_hidden_size",
        count=_count_vision,
        window=window_side(tower),
        image_token=128060,
        projected=True,
    )
    return replace(found, positions=PositionSpec(scheme="sequential"))


def _count_vision(tower: Json, hidden: int) -> int:
    width = whole(tower, "out_hidden_size", 3584, at=_VISION)
    return count_vision(tower, width) + width * hidden


def vision(model: nn.Module) -> nn.Module:
    """Tower, merger and projection of one picture; takes and gives what Qwen2.5-VL's does."""
    from vlmc.families.window_towers import ProjectedWindowedFeatures

    bare: Any = model.model
    return ProjectedWindowedFeatures(bare.vision_model, bare.projector)


def logits(model: Any, values: Tensor) -> Tensor:
    """The head's logits, scaled as the model's ``forward`` does: times, where Granite divides."""
    scaled: Tensor = values * model.config.text_config.logits_scaling
    return scaled


FAMILY = Family(
    name="hyperclovax-vision-v2",
    title="HyperCLOVA X SEED Think",
    model_types=("hyperclovax_vision_v2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "windows": 11},
    plain_image="{image}",
    logits=logits,
)
