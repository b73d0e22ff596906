"""Qwen2-VL: pictures at their own size, cut into patches; three-axis rotary positions.

Mirrors ``transformers.models.qwen2_vl`` (``Qwen2VLForConditionalGeneration``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.grid_processors import native_grid_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, native_grid, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen2-VL checkpoint.

    Raises:
        VlmcError: As ``grid_facts`` does.
    """
    return grid_facts(checkpoint, "qwen2_vl_text", width_key="hidden_size", count=_count_vision)


def grid_facts(
    checkpoint: Checkpoint,
    text_type: str,
    *,
    width_key: str,
    count: Callable[[Json, int], int],
    window: int | None = None,
    table: Json | None = None,
    spread: int | None = None,
    row_ends: bool = False,
    deepstack: int = 0,
    width: int = 3584,
    patch: int = 14,
    image_token: int = 151655,
    centers: bool = False,
    raster: bool = False,
    projected: bool = False,
) -> ModelFacts:
    """What a plan needs of a Qwen2-VL or one of its successors.

    Args:
        checkpoint: Its JSON files.
        text_type: The decoder's kind.
        width_key: What the tower's configuration calls the width of its features.
        count: Numbers in the tower's weights, from its configuration and that width.
        window: The side, in patches, of the tower's attention windows, where it has them.
        table: The tower's learned positions (``PositionTable``), where it has them.
        spread: The side of a table of which a patch may take more than a few.
        row_ends: Whether the tower makes a row for the end of each row of tokens, and one before
            and one behind all.
        deepstack: Rows that the decoder's first layers add to, one each.
        width: The default of ``width_key``.
        patch: The tower's default of ``patch_size``.
        image_token: The default of ``image_token_id``.
        centers: Whether a merged patch is read in its middle alone.
        raster: Whether the tower has to know which patch lies where.
        projected: Whether a projection makes the tower's features as wide as the decoder.

    Raises:
        VlmcError: Tower and processor cut pictures differently, or a size makes no sense.
    """
    config = checkpoint.config
    # The hub's checkpoints are flat: the decoder's keys lie at the top level.
    nested = section(config, "text_config", at=_AT)
    decoder = nested or config
    at = f"{_AT}: text_config" if nested else _AT
    text = text_facts(decoder, text_type, at=at)
    tower = section(config, "vision_config", at=_AT)
    at = f"{_AT}: vision_config"
    found = whole(tower, width_key, width, at=at)
    if found != text.hidden and not projected:
        raise VlmcError(
            f"the tower's features have {found} numbers, the decoder's {text.hidden}", at=at
        )
    bounds = checkpoint.image_bounds
    images = native_grid_spec(
        checkpoint.image_processor,
        min_pixels=bounds.get("min_pixels"),
        max_pixels=bounds.get("max_pixels"),
        window=window,
        table=table,
        spread=spread,
        centers=centers,
        raster=raster,
        row_ends=row_ends,
    )
    for key, default, option in (
        ("patch_size", patch, "patch_size"),
        ("temporal_patch_size", 2, "temporal_patch_size"),
        ("spatial_merge_size", 2, "merge_size"),
    ):
        size = whole(tower, key, default, at=at)
        if size != images.options[option]:
            message = f"the tower's {key} is {size}, the image processor's {option} "
            raise VlmcError(f"{message}is {images.options[option]}", at=at)
    tied = True if config.get("tie_word_embeddings") is True else None
    weights = WeightCounts(count(tower, text.hidden), *text_weights(decoder, text, tied=tied))
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", image_token, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="mrope"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=_least_tokens(images),
        weights=weights,
        multiples={"patches": whole(tower, "spatial_merge_size", 2, at=at) ** 2},
        deepstack=tuple(range(1, min(deepstack, text.layers) + 1)),
    )


def _least_tokens(images: ImageSpec) -> int:
    """Tokens of the smallest picture: none is resized to fewer pixels than ``min_pixels``."""
    # As text: there a list may stand for a tuple.
    options = native_grid.Options.model_validate_json(json.dumps(images.options))
    area = options.frames * (options.patch_size * options.merge_size) ** 2
    least = -(-options.min_pixels // area) if options.resize else 1
    return least + (3 if options.row_ends else 0)


def _count_vision(tower: Json, hidden: int) -> int:
    at = f"{_AT}: vision_config"
    depth = whole(tower, "depth", 32, at=at, most=MAX_LAYERS)
    width = whole(tower, "embed_dim", 1280, at=at)
    ratio = whole(tower, "mlp_ratio", 4, at=at)
    patch = whole(tower, "patch_size", 14, at=at)
    frames = whole(tower, "temporal_patch_size", 2, at=at)
    merged = width * whole(tower, "spatial_merge_size", 2, at=at) ** 2
    blocks = depth * width * width * (4 + 2 * ratio)
    return blocks + 3 * frames * patch * patch * width + merged * (merged + hidden)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Qwen2VLModel.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """The tower with its merger, for one image.

    Takes patches float ``[P, C*T*p*p]`` and their places int64 ``[P, 2]``, gives features
    ``[P / merge**2, hidden]``. Mirrors ``Qwen2VisionTransformerPretrainedModel.forward`` with one
    segment: all patches of the image see each other.
    """
    from vlmc.families.grid_towers import GridImageFeatures

    return GridImageFeatures(model.model.visual)  # type: ignore[union-attr,arg-type]


FAMILY = Family(
    name="qwen2-vl",
    title="Qwen2-VL",
    model_types=("qwen2_vl",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
