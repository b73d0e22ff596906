"""LLaVA-NeXT: LLaVA with pictures cut into tiles, as many as their shape asks for.

Mirrors ``transformers.models.llava_next`` (``LlavaNextForConditionalGeneration``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import NEXT, RESOLUTIONS, anyres_spec
from vlmc.families.llava import (
    decoder,
    decoder_facts,
    image_token_id,
    tower_facts,
    weight_counts,
)
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.runtime.images import anyres, image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a LLaVA-NeXT checkpoint.

    Raises:
        VlmcError: As ``anyres_facts``.
    """
    return anyres_facts(checkpoint.config, checkpoint.image_processor, image_token=32000)


def anyres_facts(
    config: Json,
    image_processor: Json,
    *,
    image_token: int,
    kind: str = NEXT,
    most_tiles: int | None = None,
    rows: int | None = None,
) -> ModelFacts:
    """What a plan needs of a model that reads pictures in tiles and as a whole.

    Args:
        config: The model's, with the defaults filled in where they are not LLaVA-NeXT's.
        image_processor: Its processor's JSON.
        image_token: The placeholder's id where the configuration does not say.
        kind: Class of the image processor.
        most_tiles: Features of more tiles are shrunk; None: never.
        rows: Feature rows along a side of a tile, where they are not the tower's patches.

    Raises:
        VlmcError: Its tower is of another kind or keeps tokens that are no patches, or its
            processor cuts pictures otherwise than the model joins them.
    """
    tower = tower_facts(config)
    if tower.tokens != tower.grid**2:
        raise VlmcError(
            f"{tower.tokens} feature rows of a tile do not make a square of {tower.grid}",
            at=f"{_AT}: vision_feature_select_strategy",
            hint="'default' drops the class token of CLIP; SigLIP has none and needs 'full'",
        )
    given = config.get("image_grid_pinpoints")
    images = anyres_spec(
        image_processor,
        side=tower.side,
        rows=tower.grid if rows is None else rows,
        pinpoints=RESOLUTIONS[kind] if given is None else given,
        kind=kind,
        most_tiles=most_tiles,
    )
    # As text: there a list may stand for a tuple.
    options = anyres.Options.model_validate_json(json.dumps(images.options))
    text = decoder_facts(config)
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, image_token),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=anyres.least_tokens(options),
        weights=weight_counts(tower, config, text),
    )


def vision(model: nn.Module) -> nn.Module:
    """The tower, the projector and the line break, for one image.

    Takes tiles float ``[tiles, 3, S, S]`` and the order of their rows int64 ``[tokens]``, gives
    features ``[tokens, hidden]``. Mirrors ``LlavaNextModel.get_image_features``.
    """
    from vlmc.families.anyres_towers import PackedImageFeatures

    return PackedImageFeatures(model)


FAMILY = Family(
    name="llava-next",
    title="LLaVA-NeXT (1.6)",
    model_types=("llava_next",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3, "image_tokens": 23},
    plain_image="<image>\n",
)
