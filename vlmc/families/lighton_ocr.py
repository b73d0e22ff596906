"""LightOnOCR: Pixtral's tower with its patches merged by four, and a Qwen3.

Mirrors ``transformers.models.lighton_ocr`` (``LightOnOcrForConditionalGeneration``), whose
processor leaves it to the image processor how a picture's sides are rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.grid_processors import whole_patches_spec
from vlmc.families.llava import decoder
from vlmc.families.pixtral import Tower
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import check_spec, image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER = f"{_AT}: vision_config"
_IMAGES = "preprocessor_config.json"
# What the configuration class builds where there is no text_config at all.
_TEXT: Json = {
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a LightOnOCR checkpoint.

    Raises:
        VlmcError: Processor and model cut pictures differently, or a size makes no sense.
    """
    config = checkpoint.config
    given = section(config, "text_config", at=_AT) or _TEXT
    text = text_facts(given, str(given.get("model_type") or "qwen3"))
    tower = section(config, "vision_config", at=_AT)
    word(tower, "model_type", "pixtral", ("pixtral",), at=_TOWER)
    # A tower that is described takes the class's own defaults.
    defaults = Tower() if tower else Tower(patch=14)
    patch = whole(tower, "patch_size", defaults.patch, at=_TOWER)
    merge = whole(config, "spatial_merge_size", 2, at=_AT)
    for key, default, model in (("patch_size", 14, patch), ("spatial_merge_size", 2, merge)):
        at = "processor_config.json"
        size = whole(checkpoint.processor, key, default, at=at)
        if size != model:
            message = f"the processor's {key} is {size}, the model's {model}"
            raise VlmcError(message, at=f"{at}: {key}")
    options: Json = {
        "picture": whole_patches_spec(checkpoint.image_processor, _unit(checkpoint), 1).options,
        "patch_size": patch,
        "merge_size": merge,
    }
    images = check_spec(ImageSpec(geometry="edged_patches", options=options), at=_IMAGES)
    tied = config.get("tie_word_embeddings", True) is True
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 151655, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=1,
        weights=WeightCounts(
            _count(tower, defaults, text, patch, merge), *text_weights(given, text, tied=tied)
        ),
    )


def _unit(checkpoint: Checkpoint) -> int:
    """What a picture's sides are multiples of, in pixels."""
    found = checkpoint.image_processor.get("patch_size")
    if isinstance(found, dict):
        sides = [whole(found, key, at=f"{_IMAGES}: patch_size") for key in ("height", "width")]
        if sides[0] != sides[1]:
            raise VlmcError(f"{found} is no square", at=f"{_IMAGES}: patch_size")
        return sides[0]
    return whole(checkpoint.image_processor, "patch_size", 16, at=_IMAGES)


def _count(tower: Json, defaults: Tower, text: TextFacts, patch: int, merge: int) -> int:
    depth = whole(tower, "num_hidden_layers", defaults.layers, at=_TOWER, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", defaults.hidden, at=_TOWER)
    inner = whole(tower, "intermediate_size", defaults.intermediate, at=_TOWER)
    vision = depth * width * (4 * width + 3 * inner) + 3 * patch * patch * width
    return vision + width * width * merge**2 + text.hidden * (width + text.hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower, the merger and the projection, for one image.

    Takes patches float ``[P, 3*p*p]``, their places int64 ``[P, 2]`` and those of each feature row
    int64 ``[tokens, merge**2]``, gives features ``[tokens, hidden]``. Mirrors
    ``LightOnOcrModel.get_image_features`` with one picture.
    """
    from vlmc.families.lighton_modules import EdgedPatchFeatures

    return EdgedPatchFeatures(model)


FAMILY = Family(
    name="lighton-ocr",
    title="LightOnOCR",
    model_types=("lighton_ocr",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 91, "image_tokens": 18},
    plain_image="{image}",
)
