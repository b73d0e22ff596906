"""Cosmos 3 Edge: Qwen2-VL's pictures, a SigLIP 2 tower, a decoder with two-matrix feed-forwards.

Mirrors ``transformers.models.cosmos3_edge`` (``Cosmos3EdgeForConditionalGeneration``), for
pictures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_vl import decoder, grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Cosmos 3 Edge checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, the tower's positions make no
            square, or a size makes no sense.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    places = whole(tower, "num_patches", 256, at=_VISION)
    side = math.isqrt(places)
    if side * side != places:
        message = f"{places} positions do not make a square"
        raise VlmcError(message, at=f"{_VISION}: num_patches")
    width, heads = _width(tower), whole(tower, "num_attention_heads", 16, at=_VISION)
    if width % heads:
        raise VlmcError(f"hidden size {width} does not divide into {heads} heads", at=_VISION)
    if whole(tower, "num_channels", 3, at=_VISION) != 3:
        raise VlmcError("pictures have 3 channels", at=f"{_VISION}: num_channels")
    # The projector's features are as wide as the decoder; one frame is all that a patch has.
    given = {**tower, "temporal_patch_size": 1}
    found = grid_facts(
        replace(checkpoint, config={**config, "vision_config": given}),
        "cosmos3_edge_text",
        width_key="hidden_size",
        count=partial(_count_vision, whole(config, "projector_hidden_size", 11520, at=_AT)),
        spread=side,
        width=1152,
        patch=16,
        image_token=19,
        projected=True,
    )
    assert found.weights is not None
    # Whatever a configuration says: ``_tied_weights_keys`` is empty.
    return replace(found, weights=replace(found.weights, head=found.weights.embedding))


def _width(tower: Json) -> int:
    return whole(tower, "hidden_size", 1152, at=_VISION)


def _count_vision(between: int, tower: Json, hidden: int) -> int:
    depth = whole(tower, "num_hidden_layers", 27, at=_VISION, most=MAX_LAYERS)
    width = _width(tower)
    inner = whole(tower, "intermediate_size", 4304, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    places = whole(tower, "num_patches", 256, at=_VISION)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_VISION) ** 2
    blocks = depth * width * (4 * width + 2 * inner)
    return blocks + (3 * patch * patch + places) * width + between * (merged + hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image.

    Takes patches float ``[P, p*p*C]`` and each one's shares of the table of positions float
    ``[P, num_patches]``, in merged-block order; gives features ``[P / merge**2, hidden]``. Mirrors
    ``Cosmos3EdgeModel.get_image_features`` with one segment.
    """
    from vlmc.families.grid_towers import SpreadImageFeatures

    return SpreadImageFeatures(model)


FAMILY = Family(
    name="cosmos3-edge",
    title="Cosmos 3 Edge (pictures)",
    model_types=("cosmos3_edge",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
