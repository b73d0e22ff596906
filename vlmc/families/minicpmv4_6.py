"""MiniCPM-V 4.6: slices of a picture in a tower that merges them midway, and a Qwen3.5.

Mirrors ``transformers.models.minicpmv4_6`` (``MiniCPMV4_6ForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.llava import decoder
from vlmc.families.qwen3_5 import delta_states
from vlmc.families.slices_processor import has_image_ids, merge_size, slices_spec
from vlmc.families.spec import (
    Checkpoint,
    Family,
    ModelFacts,
    StateFacts,
    TextFacts,
    WeightCounts,
)
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, slices, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"
NETS = ("qwen3_5_text", "qwen3_5_moe_text")


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a MiniCPM-V 4.6 checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, the tower merges otherwise or
            nowhere, a size makes no sense, or as for Qwen3.5's decoder.
    """
    config = checkpoint.config
    given = section(config, "text_config", at=_AT)
    text = text_facts(given, str(given.get("model_type") or "qwen3_5_text"))
    tower = section(config, "vision_config", at=_AT)
    merge = merge_size(config.get("downsample_mode", "16x"))
    _check_merging(config, tower, merge)
    images = slices_spec(
        checkpoint.image_processor,
        whole(tower, "patch_size", 16, at=_VISION),
        merge,
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    ids = has_image_ids(checkpoint.image_processor)
    states: tuple[StateFacts, ...] = ()
    more = 0
    if text.model_type in NETS:
        states, more = delta_states(given, text)
    tied = config.get("tie_word_embeddings") is True
    language, table, head = text_weights(given, text, tied=tied)
    return ModelFacts(
        text=text,
        # Without one, transformers leaves every picture out and says nothing of it.
        image_token_id=whole(config, "image_token_id", at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: _prompt_tokens(height, width, images, ids=ids),
        min_image_tokens=3 + 3 * ids,
        weights=WeightCounts(_count_vision(tower, text), language + more, table, head),
        multiples={"patches": merge**2, "slots": merge**2},
        states=states,
        image_layout=layout(ids=ids),
    )


def _check_merging(config: Json, tower: Json, merge: int) -> None:
    """Refuses towers that merge otherwise than by two on each side, as processors count."""
    layers = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    for found, key, at in (
        (config, "merge_kernel_size", _AT),
        (tower, "window_kernel_size", _VISION),
    ):
        kernel = found.get(key)
        if kernel is not None and kernel not in (2, [2, 2]):
            message = f"{kernel!r} is not [2, 2], by which the processor counts tokens"
            raise VlmcError(message, at=f"{at}: {key}")
    if whole(config, "merger_times", 1, at=_AT) != 1:
        message = "the processor counts the tokens of one merger behind the tower"
        raise VlmcError(message, at=f"{_AT}: merger_times")
    after = config.get("insert_layer_id", 6)
    if merge == 4 and (type(after) is not int or not 0 <= after < layers):
        raise VlmcError(
            f"the tower has {layers} layers: none is number {after!r}, behind which it merges",
            at=f"{_AT}: insert_layer_id",
        )


def _prompt_tokens(height: int, width: int, images: ImageSpec, *, ids: bool) -> int:
    """Tokens of a picture with the marks around it, its slices and their rows."""
    # As text: there a list may stand for a tuple.
    options = slices.Options.model_validate_json(json.dumps(images.options))
    rows, columns = slices.slice_grid(height, width, options)
    marks = 2 * (1 + rows * columns) + max(rows - 1, 0) + 3 * ids
    return image_tokens(height, width, images) + marks


def layout(*, ids: bool) -> ImageLayout:
    """As ``MiniCPMV4_6Processor.replace_image_token`` and ``_prepend_local_ids`` write it.

    Args:
        ids: Whether a picture's number comes first.
    """
    return ImageLayout(
        numbered="{image_id_start_token}{index}{image_id_end_token}" if ids else "",
        whole="{image_start_token}",
        end="{image_end_token}",
        after_whole="",
        tile="{slice_start_token}",
        tile_end="{slice_end_token}",
        between_rows="\n",
    )


def _count_vision(tower: Json, text: TextFacts) -> int:
    depth = whole(tower, "num_hidden_layers", 12, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 768, at=_VISION)
    inner = whole(tower, "intermediate_size", 3072, at=_VISION)
    patch = whole(tower, "patch_size", 16, at=_VISION)
    places = (whole(tower, "image_size", 224, at=_VISION) // patch) ** 2
    layers = depth * width * (4 * width + 2 * inner) + (3 * patch * patch + places) * width
    window = 4 * width * width + 4 * inner * (4 * width + width)
    return layers + window + 4 * width * (4 * width + text.hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower with its mergers, for one image; see ``vlmc.runtime.images.slices.prepare``."""
    from vlmc.families.minicpm_modules import SlicedImageFeatures

    return SlicedImageFeatures(model)


FAMILY = Family(
    name="minicpm-v4.6",
    title="MiniCPM-V 4.6",
    model_types=("minicpmv4_6",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96, "tiles": 3, "slots": 48},
    plain_image="{image}",
)
