"""Command A Vision: a picture as tiles, a line break after each, before a Cohere2 decoder.

Mirrors ``transformers.models.cohere2_vision`` (``Cohere2VisionForConditionalGeneration``).
"""

from __future__ import annotations

from vlmc.bundle.manifest import ImageLayout
from vlmc.families.aya_vision import (
    check_tile,
    merged_tokens,
    tiled_facts,
    vision,
    with_tower,
)
from vlmc.families.configs import whole
from vlmc.families.llava import decoder, tower_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.families.tiles_processors import torch_tiles_spec
from vlmc.schema import Json

_SIGLIP: Json = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "image_size": 512,
    "num_hidden_layers": 27,
}
# As ``Cohere2VisionProcessor.replace_image_token`` writes it.
LAYOUT = ImageLayout(
    start="{boi_token}",
    tile_end="{img_line_break_token}",
    end="{img_line_break_token}{eoi_token}",
)


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Cohere2 Vision checkpoint.

    Raises:
        VlmcError: Tower and processor disagree on the size or the tokens of a tile, or the tower's
            features cannot be merged as asked.
    """
    # All of the last state is read, whatever the tower.
    read = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    config = with_tower({**checkpoint.config, **read}, _SIGLIP)
    tower = tower_facts(config)
    max_tiles = checkpoint.image_bounds.get("max_tiles")
    tokens = merged_tokens(config, tower)
    images = torch_tiles_spec(checkpoint.image_processor, tokens, max_tiles=max_tiles)
    check_tile(images, tower.side)
    adapter = whole(config, "alignment_intermediate_size", 36864, at="config.json")
    return tiled_facts(config, tower, images, LAYOUT, adapter)


FAMILY = Family(
    name="cohere2-vision",
    title="Command A Vision",
    model_types=("cohere2_vision",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="{image}",
)
