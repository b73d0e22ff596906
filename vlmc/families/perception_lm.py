"""Perception LM: a Perception Encoder on a picture and its tiles, averaged features, a Llama.

Mirrors ``transformers.models.perception_lm`` (``PerceptionLMForConditionalGeneration``), whose
tower is timm's; ours is in its place, see ``vlmc/families/perception_modules.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole, word
from vlmc.families.fast_vlm import timm_tower
from vlmc.families.llava import decoder, decoder_facts
from vlmc.families.perception_encoder import PerceptionEncoder, read_perception_encoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_weights
from vlmc.families.whole_then_tiles_processor import whole_then_tiles_spec
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TOWER = f"{_AT}: vision_config"
_PROCESSOR = "processor_config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Perception LM checkpoint.

    Raises:
        VlmcError: Its tower is no Perception Encoder, tower and projector or tower and processor
            disagree, or a value makes no sense.
    """
    config = checkpoint.config
    text = decoder_facts(config)
    tower = _tower(config)
    tokens = _tokens(config, tower)
    _check_processor(checkpoint.processor, tower, tokens)
    images = whole_then_tiles_spec(
        checkpoint.image_processor,
        tokens,
        image_size=tower.img_size,
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    projector = text.hidden * (tower.embed_dim + text.hidden)
    given = section(config, "text_config", at=_AT)
    said = config.get("tie_word_embeddings")
    tied = given.get("tie_word_embeddings") is True if said is None else said is True
    least = 1 if images.options["max_tiles"] is None else 2
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 128002, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=least * tokens,
        weights=WeightCounts(tower.count() + projector, *text_weights(given, text, tied=tied)),
    )


def _tower(config: Json) -> PerceptionEncoder:
    vision = section(config, "vision_config", at=_AT)
    word(vision, "model_type", "timm_wrapper", ("timm_wrapper",), at=_TOWER)
    tower = read_perception_encoder({"architecture": "resnet50", **vision})
    args = section(vision, "model_args", at=_TOWER)
    # The projector's class has no other way to know it.
    whole(args, "embed_dim", at=f"{_TOWER}.model_args")
    return tower


def _tokens(config: Json, tower: PerceptionEncoder) -> int:
    """Feature rows of a tile."""
    used = config.get("vision_use_cls_token")
    used = True if used is None else used
    if used is not tower.class_token:
        has, read = ("a", "keeps") if tower.class_token else ("no", "leaves out")
        message = f"the tower has {has} class token, and the model {read} the first token"
        raise VlmcError(message, at=f"{_AT}: vision_use_cls_token")
    ratio = whole(config, "projector_pooling_ratio", 1, at=_AT)
    rows, columns = tower.grid
    if ratio > 1 and (rows != columns or ratio > rows):
        message = f"{rows} x {columns} patches cannot be averaged by {ratio}"
        raise VlmcError(message, at=f"{_AT}: projector_pooling_ratio")
    return (rows // ratio) * (columns // ratio)


def _check_processor(settings: Json, tower: PerceptionEncoder, tokens: int) -> None:
    """Refuses a processor that counts other tokens than the tower gives features.

    Raises:
        VlmcError: It does, or does not say how it counts.
    """
    patch = whole(settings, "patch_size", at=_PROCESSOR)
    ratio = whole(settings, "pooling_ratio", 2, at=_PROCESSOR)
    counted = (tower.img_size[0] // patch // ratio) ** 2
    if counted != tokens:
        raise VlmcError(
            f"a tile has {tokens} features, and the processor counts {counted}",
            at=f"{_PROCESSOR}: patch_size and pooling_ratio",
        )


def vision(model: nn.Module) -> nn.Module:
    """Tower, projector and pooling: tiles float ``[tiles, 3, S, S]`` -> ``[tokens, hidden]``."""
    from vlmc.families.perception_modules import PerceptionFeatures

    return PerceptionFeatures(model)


FAMILY = Family(
    name="perception-lm",
    title="Perception LM",
    model_types=("perception_lm",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="{image}",
    timm_tower=timm_tower,
)
