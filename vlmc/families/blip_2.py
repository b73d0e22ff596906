"""BLIP-2: a tower, a Q-Former that reads it with a few queries, and any causal decoder.

Mirrors ``transformers.models.blip_2`` (``Blip2ForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.image_processors import fixed_spec
from vlmc.families.opt import opt_facts, opt_weights
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_QFORMER_AT = f"{_AT}: qformer_config"
_PROCESSOR_AT = "processor_config.json: num_query_tokens"
# Text models that write with a second stack of layers.
_TWO_STACKS = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "bart", "mbart", "pegasus")
# End tokens of the text configuration classes that have one; the decoder's own generate() takes
# them from there.
ENDS = {
    **dict.fromkeys(("cohere", "cohere2"), 255001),
    **dict.fromkeys(("gemma", "gemma2"), 1),
    **dict.fromkeys(("granite", "lfm2", "llama", "mistral", "opt"), 2),
    "olmo2": 50279,
    "phi3": 32000,
    "smollm3": 128001,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a BLIP-2 checkpoint.

    Raises:
        VlmcError: Its text model has an encoder, or tower, Q-Former, processor and decoder
            disagree on a size.
    """
    return query_facts(checkpoint, qformer_weights=count_qformer(checkpoint.config))


def query_facts(checkpoint: Checkpoint, *, qformer_weights: int) -> ModelFacts:
    """Facts of a model with a Q-Former, whose feature rows are its queries.

    Args:
        checkpoint: The JSON files.
        qformer_weights: Numbers in its matrices.

    Raises:
        VlmcError: As ``facts``.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    kind = str(found.get("model_type") or "opt")
    text = _text(found, kind)
    tokens = whole(config, "num_query_tokens", 32, at=_AT)
    _check_processor(checkpoint.processor, tokens)
    images = fixed_spec(checkpoint.image_processor, tokens)
    tower = section(config, "vision_config", at=_AT)
    _check_patches(tower, images)
    key = "image_token_id" if config.get("image_token_id") is not None else "image_token_index"
    width = whole(section(config, "qformer_config", at=_AT), "hidden_size", 768, at=_QFORMER_AT)
    vision = _count_tower(tower) + qformer_weights + width * text.hidden
    counted = opt_weights(found, text, at=_TEXT_AT) if kind == "opt" else None
    language, embedding, head = counted or text_weights(found, text, tied=None)
    return ModelFacts(
        text=text,
        image_token_id=whole(config, key, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=WeightCounts(vision, language, embedding, head),
        max_images=1,
        ends=_ends(found, kind),
    )


def _text(found: Json, kind: str) -> TextFacts:
    if kind in _TWO_STACKS or found.get("is_encoder_decoder") is True:
        raise VlmcError(
            f"the text model '{kind}' is an encoder and a decoder; only decoders are served",
            at=f"{_TEXT_AT}: model_type",
            hint="choose a checkpoint with OPT or Vicuna, such as Salesforce/blip2-opt-2.7b",
        )
    return opt_facts(found, at=_TEXT_AT) if kind == "opt" else text_facts(found, kind)


def _ends(found: Json, kind: str) -> tuple[int, ...]:
    """``eos_token_id`` of the text configuration, or its class's own."""
    value = found.get("eos_token_id", ENDS.get(kind))
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(whole({"id": one}, "id", at=f"{_TEXT_AT}: eos_token_id", least=0) for one in ids)


def _check_processor(processor: Json, tokens: int) -> None:
    said = processor.get("num_query_tokens")
    if said is None:
        raise VlmcError(
            "the processor does not say how many tokens a picture takes",
            at=_PROCESSOR_AT,
            hint=f"without it transformers shows the model no picture; the model makes {tokens}",
        )
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a picture, the model makes {tokens}",
            at=_PROCESSOR_AT,
        )


def _check_patches(tower: Json, images: ImageSpec) -> None:
    """Refuses pictures of more patches than the tower has positions; fewer leave some unused."""
    side = whole(tower, "image_size", 224, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    height, width = (int(size) for size in vision_inputs(images)[0].shape[-2:])
    if (height // patch) * (width // patch) > (side // patch) ** 2 or patch > min(height, width):
        raise VlmcError(
            f"the processor makes pictures of {width} x {height} pixels, "
            f"the vision tower takes {side} x {side}",
            at="preprocessor_config.json",
        )


def _count_tower(tower: Json) -> int:
    layers = whole(tower, "num_hidden_layers", 39, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1408, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 6144, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    return layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width


def count_qformer(config: Json) -> int:
    """Numbers in the layers of a Q-Former that reads no text."""
    found = section(config, "qformer_config", at=_AT)
    at = _QFORMER_AT
    layers = whole(found, "num_hidden_layers", 12, at=at, most=MAX_LAYERS)
    width = whole(found, "hidden_size", 768, at=at)
    inner = whole(found, "intermediate_size", 3072, at=at)
    every = whole(found, "cross_attention_frequency", 2, at=at)
    # The tower's width counts, whatever ``encoder_hidden_size`` says.
    read = whole(section(config, "vision_config", at=_AT), "hidden_size", 1408, at=_TOWER_AT)
    crossing = -(-layers // every)
    return layers * width * (4 * width + 2 * inner) + crossing * 2 * width * (width + read)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack of ``Blip2ForConditionalGeneration.language_model``."""
    return model.language_model.get_decoder()  # type: ignore[union-attr,operator,no-any-return]


def logits(model: Any, values: Tensor) -> Tensor:
    """What the decoder's own class makes of its head's logits.

    Cohere multiplies them, Granite divides them, Gemma 2 bounds them, as their ``*ForCausalLM``.
    """
    config = model.language_model.config
    values = values * (getattr(config, "logit_scale", None) or 1.0)
    values = values / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return values if cap is None else (values / cap).tanh() * cap


def vision(model: nn.Module) -> nn.Module:
    """Tower, Q-Former and projection: pixels float ``[1, 3, S, S]`` -> ``[queries, hidden]``."""
    from vlmc.families.query_towers import QFormerFeatures

    return QFormerFeatures(model)


FAMILY = Family(
    name="blip-2",
    title="BLIP-2 (OPT and other decoders)",
    model_types=("blip-2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="",
    leading_images=True,
    extra_tokens=("<image>",),
    logits=logits,
)
