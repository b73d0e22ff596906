"""Pixtral: LLaVA with a tower that takes pictures at their own size, and marks after their rows.

Mirrors ``transformers.models.llava`` with a tower of ``transformers.models.pixtral``, and
``PixtralProcessor``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.grid_processors import whole_patches_spec
from vlmc.families.llava import decoder, decoder_facts, feature_layers, image_token_id
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_weights
from vlmc.runtime.images import vision_inputs, whole_patches
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_PROCESSOR = "processor_config.json"


@dataclass(frozen=True)
class Tower:
    """Defaults of a Pixtral tower's configuration."""

    patch: int = 16
    layers: int = 24
    hidden: int = 1024
    intermediate: int = 4096


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Pixtral checkpoint.

    Raises:
        VlmcError: As ``pixtral_facts`` does; or features are dropped as if one were a class token.
    """
    config = checkpoint.config
    word(config, "vision_feature_select_strategy", "default", ("full",), at=_AT)
    text = decoder_facts(config)
    return pixtral_facts(
        checkpoint,
        text,
        Tower(),
        merge=1,
        image_token=image_token_id(config, 32000),
    )


def pixtral_facts(
    checkpoint: Checkpoint,
    text: TextFacts,
    defaults: Tower,
    *,
    merge: int,
    image_token: int,
) -> ModelFacts:
    """What a plan needs of a model with a Pixtral tower.

    Args:
        checkpoint: Its JSON files.
        text: The decoder's sizes.
        defaults: Of the tower's configuration.
        merge: The side, in patches, of a feature row.
        image_token: The placeholder's id.

    Raises:
        VlmcError: Tower and processor cut pictures differently, or a size makes no sense.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    at = f"{_AT}: vision_config"
    patch = whole(tower, "patch_size", defaults.patch, at=at)
    for key, default, model in (("patch_size", 16, patch), ("spatial_merge_size", 1, merge)):
        size = whole(checkpoint.processor, key, default, at=_PROCESSOR)
        if size != model:
            raise VlmcError(
                f"the processor's {key} is {size}, the model's {model}", at=f"{_PROCESSOR}: {key}"
            )
    images = whole_patches_spec(checkpoint.image_processor, patch, merge)
    depth = whole(tower, "num_hidden_layers", defaults.layers, at=at, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", defaults.hidden, at=at)
    inner = whole(tower, "intermediate_size", defaults.intermediate, at=at)
    chosen = feature_layers(config, depth)
    vision = depth * width * (4 * width + 3 * inner) + 3 * patch * patch * width
    vision += width * width * merge**2 if merge > 1 else 0
    vision += text.hidden * (len(chosen) * width + text.hidden)
    tied = True if config.get("tie_word_embeddings") is True else None
    decoder_config = section(config, "text_config", at=_AT)
    return ModelFacts(
        text=text,
        image_token_id=image_token,
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: _prompt_tokens(height, width, images),
        min_image_tokens=2,
        weights=WeightCounts(vision, *text_weights(decoder_config, text, tied=tied)),
        multiples={"patches": merge**2} if merge > 1 else {},
        image_layout=_layout(checkpoint.processor),
    )


def _prompt_tokens(height: int, width: int, images: ImageSpec) -> int:
    """Tokens of a picture with the mark after each of its rows."""
    # As text: there a list may stand for a tuple.
    options = whole_patches.Options.model_validate_json(json.dumps(images.options))
    rows, columns = whole_patches.grid(height, width, options)
    return rows * (columns + 1)


def _layout(processor: Json) -> ImageLayout:
    """As ``PixtralProcessor.replace_image_token`` writes it: the last row ends the picture."""
    marks = []
    for key, default in (("image_break_token", "[IMG_BREAK]"), ("image_end_token", "[IMG_END]")):
        mark = processor.get(key, default)
        if not isinstance(mark, str) or not mark:
            raise VlmcError(f"{mark!r} is no token", at=f"{_PROCESSOR}: {key}")
        marks.append(mark)
    return ImageLayout(row_end=marks[0], end=marks[1])


def vision(model: nn.Module) -> nn.Module:
    """The tower and the projector, for one image.

    Takes patches float ``[P, 3*p*p]`` and their places int64 ``[P, 2]``, gives features
    ``[P, hidden]``. Mirrors ``LlavaModel.get_image_features`` with one picture.
    """
    from vlmc.families.grid_towers import PixtralImageFeatures

    return PixtralImageFeatures(model)


FAMILY = Family(
    name="pixtral",
    title="Pixtral",
    model_types=("llava",),
    tower="pixtral",
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="[IMG]",
)
