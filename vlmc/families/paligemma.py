"""PaliGemma and PaliGemma 2: a SigLIP tower and a Gemma that sees all of its prompt at once.

Mirrors ``transformers.models.paligemma`` (``PaliGemmaForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import MaskSpec, PositionSpec, PromptFrame
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole, word
from vlmc.families.gemma3 import tower_facts, vision
from vlmc.families.image_processors import fixed_spec
from vlmc.families.llava import decoder, image_token_id
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import layer_kinds, text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import Tensor

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_SLIDING, _FULL = "sliding_attention", "full_attention"
# PaliGemmaConfig's own, where a section is absent as a whole.
_TOWER: Json = {
    "intermediate_size": 4096,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 224,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
_TEXT: Json = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "num_hidden_layers": 18,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a PaliGemma checkpoint.

    Raises:
        VlmcError: Tower, projector, decoder and processor disagree on a size.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT) or _TEXT
    kind = word(found, "model_type", "gemma", ("gemma", "gemma2"), at=_TEXT_AT)
    text = text_facts(found, kind)
    side, grid, (width, numbers) = tower_facts(section(config, "vision_config", at=_AT) or _TOWER)
    tokens = grid * grid
    # Null means unset here: there is no default.
    said = whole(checkpoint.image_processor, "image_seq_length", at="preprocessor_config.json")
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a picture, the model makes {tokens}",
            at="preprocessor_config.json: image_seq_length",
        )
    if (made := whole(config, "projection_dim", 2048, at=_AT)) != text.hidden:
        raise VlmcError(
            f"the projector makes rows of {made}, the decoder takes {text.hidden}",
            at=f"{_AT}: projection_dim",
        )
    images = fixed_spec(checkpoint.image_processor, tokens, image_size=side)
    return ModelFacts(
        text=text,
        image_token_id=image_token_id(config, 256000),
        images=images,
        positions=PositionSpec(scheme="sequential", options={"start": 1}),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=_count(config, found, text, numbers + width * text.hidden),
        masks=_masks(found, kind, text),
    )


def _masks(found: Json, kind: str, text: TextFacts) -> tuple[MaskSpec, ...]:
    """All of the prompt is one span, whatever the window; Gemma has no kinds of layers."""
    if kind == "gemma":
        return (MaskSpec(input="attention_bias", spans="prompt"),)
    window = whole(found, "sliding_window", 4096, at=_TEXT_AT)
    masks = {
        _FULL: MaskSpec(layers=_FULL, input="attention_bias", spans="prompt"),
        _SLIDING: MaskSpec(
            layers=_SLIDING,
            input="sliding_attention_bias",
            spans="prompt",
            window=window,
            window_in_spans=False,
        ),
    }
    kinds = layer_kinds(found, [_SLIDING, _FULL][: text.layers], masks, at=_TEXT_AT)
    return tuple(masks[kind] for kind in kinds)


def _count(config: Json, found: Json, text: TextFacts, vision: int) -> WeightCounts:
    tied = config.get("tie_word_embeddings", True) is True
    language, embedding, head = text_weights(found, text, tied=tied)
    return WeightCounts(vision, language, embedding, head)


def logits(model: Any, values: Tensor) -> Tensor:
    """Gemma 2's soft cap of the logits, which ``PaliGemmaForConditionalGeneration`` applies."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return values if cap is None else (values / cap).tanh() * cap


FAMILY = Family(
    name="paligemma",
    title="PaliGemma 1 and 2",
    model_types=("paligemma",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="<image>",
    frame=PromptFrame(after_images="{bos_token}", end="\n"),
    extra_tokens=tuple(f"<loc{i:04}>" for i in range(1024))
    + tuple(f"<seg{i:03}>" for i in range(128)),
    logits=logits,
)
