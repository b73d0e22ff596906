"""FastVLM: FastViTHD's few features of a large picture, a two-layer projector, a Qwen2.

Mirrors ``transformers.models.fast_vlm`` (``FastVlmForConditionalGeneration``), whose tower is
timm's; ours is in its place, see ``vlmc/families/fastvit_modules.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole, word
from vlmc.families.fastvit import FastVit, matrices_of, read_fastvit
from vlmc.families.image_processors import fixed_spec
from vlmc.families.llava import decoder, image_token_id
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER = f"{_AT}: vision_config"
_PROCESSOR = "processor_config.json"
# What the configuration class builds where a part is left out.
_VISION: Json = {
    "architecture": "fastvit_mci3",
    "hidden_size": 3072,
    "model_args": {"inference_mode": True},
}
_TEXT: Json = {
    "hidden_size": 3584,
    "vocab_size": 152128,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a FastVLM checkpoint.

    Raises:
        VlmcError: Its tower is no FastViT, tower and projector or tower and processor disagree, or
            a value makes no sense.
    """
    config = checkpoint.config
    given = section(config, "text_config", at=_AT) or _TEXT
    text = text_facts(given, str(given.get("model_type") or "qwen2"))
    tower = _tower(config)
    images = _images(checkpoint, tower)
    tokens = int(str(images.options["tokens"]))
    projector = text.hidden * (tower.features + text.hidden)
    tied = True if config.get("tie_word_embeddings") is True else None
    weights = WeightCounts(tower.count() + projector, *text_weights(given, text, tied=tied))
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, 151646),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=weights,
    )


def _tower(config: Json) -> FastVit:
    vision = section(config, "vision_config", at=_AT) or _VISION
    word(vision, "model_type", "timm_wrapper", ("timm_wrapper",), at=_TOWER)
    word(config, "vision_feature_select_strategy", "full", ("full",), at=_AT)
    if config.get("vision_feature_layer", -1) != -1:
        at = f"{_AT}: vision_feature_layer"
        raise VlmcError(f"layer {config['vision_feature_layer']!r}; the last, -1, is read", at=at)
    tower = read_fastvit({"architecture": "resnet50", **vision})
    width = whole(vision, "hidden_size", at=_TOWER)
    if width != tower.features:
        raise VlmcError(
            f"the projector reads {width} numbers, the tower gives {tower.features}",
            at=f"{_TOWER}.hidden_size",
        )
    return tower


def _images(checkpoint: Checkpoint, tower: FastVit) -> ImageSpec:
    """The processor's pictures, of any size that the tower and the processor count alike.

    Raises:
        VlmcError: ``LlavaProcessor`` counts other tokens than the tower gives features.
    """
    spec = fixed_spec(checkpoint.image_processor, 1)
    height, width = (int(side) for side in vision_inputs(spec)[0].shape[-2:])
    tokens = tower.side(height) * tower.side(width)
    settings = checkpoint.processor
    if settings.get("patch_size") is not None:
        patch = whole(settings, "patch_size", at=_PROCESSOR)
        more = whole(settings, "num_additional_image_tokens", 0, at=_PROCESSOR, least=0)
        counted = (height // patch) * (width // patch) + more
        counted -= settings.get("vision_feature_select_strategy") == "default"
        if counted != tokens:
            raise VlmcError(
                f"a picture of {width} x {height} pixels has {tokens} features, and the processor "
                f"counts {counted}",
                at=f"{_PROCESSOR}: patch_size",
            )
    return fixed_spec(checkpoint.image_processor, tokens)


def vision(model: nn.Module) -> nn.Module:
    """Tower and projector: pixels float ``[1, 3, H, W]`` -> features ``[tokens, hidden]``."""
    from vlmc.families.towers import FixedImageFeatures

    return FixedImageFeatures(model)


def timm_tower(config: Any) -> nn.Module:
    """The tower of a vision configuration, which transformers would ask timm for.

    Raises:
        VlmcError: There is none of that name.
    """
    from vlmc.families.timm_modules import make_tower

    return make_tower(config)


def tensors(index: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The checkpoint's tensors as our tower has them."""
    return matrices_of(index)


FAMILY = Family(
    name="fast-vlm",
    title="FastVLM",
    model_types=("fast_vlm",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
    timm_tower=timm_tower,
    tensors=tensors,
)
