"""The rule for masks against transformers' own, on layouts, windows and steps of every kind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.bundle.manifest import MaskSpec
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint
from vlmc.passes.masks import own_masks, prove_masks, rule_mask
from vlmc.runtime.attention import decode_bias, prefill_bias, whole_spans
from vlmc.runtime.features import cut
from vlmc.runtime.types import ImageSpan, Prompt

SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
SIZES |= {"num_hidden_layers": 2, "intermediate_size": 32, "vocab_size": 60, "head_dim": 16}
TOWER: dict[str, Any] = {"model_type": "siglip_vision_model", "num_hidden_layers": 1}
TOWER |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
TOWER |= {"image_size": 28, "patch_size": 14}
KINDS = ["sliding_attention", "full_attention"]


UNIFIED = FAMILIES["gemma4-unified"]


def create_of(model: Any) -> Any:
    """What makes its masks, where it is not the model's own function."""
    return UNIFIED.create_masks if model.config.model_type == "gemma4_unified" else None


def model_of(kind: str, window: int) -> Any:
    """A model on the meta device: its class and configuration are what counts."""
    import torch
    import transformers as hf

    text = {"model_type": kind, **SIZES}
    if kind not in ("gemma", "molmo2_text"):
        text |= {"sliding_window": window, "layer_types": KINDS}
    with torch.device("meta"):
        if kind == "gemma3_text":
            config = hf.Gemma3Config(vision_config=TOWER, text_config=text, mm_tokens_per_image=4)
            return hf.Gemma3ForConditionalGeneration(config)
        if kind == "gemma4_text":
            own = {"use_bidirectional_attention": "vision", "hidden_size_per_layer_input": 0}
            tower = {**SIZES, "model_type": "gemma4_vision"}
            config = hf.Gemma4Config(vision_config=tower, text_config={**text, **own})
            return hf.Gemma4ForConditionalGeneration(config)
        if kind == "gemma4_unified_text":
            config = hf.Gemma4UnifiedConfig(
                vision_config={"mm_embed_dim": 32, "output_proj_dims": 32}, text_config=text
            )
            return hf.Gemma4UnifiedForConditionalGeneration(config)
        if kind == "molmo2_text":
            text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
            side = {"image_size": [378, 378], "vision_feature_layer": [0], "text_hidden_size": 32}
            parts = {name: {**SIZES, **side} for name in ("vision_config", "adapter_config")}
            config = hf.Molmo2Config(text_config=text, **parts)
            return hf.Molmo2ForConditionalGeneration(config)
        pali = hf.PaliGemmaConfig(vision_config=TOWER, text_config=text, projection_dim=32)
        return hf.PaliGemmaForConditionalGeneration(pali)


def masks_of(model: Any) -> tuple[MaskSpec, ...]:
    images = {"size": {"height": 28, "width": 28}, "image_seq_length": 4}
    if model.config.model_type == "gemma4_unified":
        named = {"image_processor_type": "Gemma4UnifiedImageProcessor"}
        return UNIFIED.facts(Checkpoint(model.config.to_dict(), {}, named, {}, {})).masks
    if model.config.model_type in ("gemma4", "molmo2"):
        named = {"image_processor_type": f"{model.config.model_type.capitalize()}ImageProcessor"}
        given = Checkpoint(model.config.to_dict(), {}, named, {}, {})
        masks = FAMILIES[model.config.model_type].facts(given).masks
        return tuple(mask.model_copy(update={"marks": (0, 0)}) for mask in masks)
    name = "Gemma3" if model.config.model_type == "gemma3" else "Siglip"
    images["image_processor_type"] = f"{name}ImageProcessor"
    config = model.config.to_dict()
    found = Checkpoint(config, {"image_seq_length": 4}, images, {}, {})
    return FAMILIES[model.config.model_type].facts(found).masks


KNOWN = ["gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "molmo2_text"]


@pytest.mark.parametrize("kind", KNOWN)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_rule_is_what_transformers_does(kind: str, data: st.DataObject) -> None:
    window = data.draw(st.integers(1, 12))
    model = model_of(kind, window)
    masks = masks_of(model)
    prompt = data.draw(st.text("ti", min_size=1, max_size=24))
    answer = "a" * data.draw(st.integers(0, 14))
    step = data.draw(st.integers(1, 26))
    text = model.config.get_text_config()
    text._attn_implementation = "eager"
    wanted = own_masks(model, model.config, prompt, answer, masks, create_of(model))
    assert {mask.layers for mask in masks} == wanted.keys()
    for mask in masks:
        found = rule_mask(mask, prompt, answer, masks, step)
        assert np.array_equal(found, wanted[mask.layers])


@pytest.mark.parametrize("kind", KNOWN)
def test_a_rule_that_is_right_is_proven(kind: str) -> None:
    model = model_of(kind, 1024)
    prove_masks(model, masks_of(model), create_of(model))


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize(
    "change",
    [{"spans": None}, {"spans": "images"}, {"spans": "prompt"}, {"window": 1023}, {"chunk": 4}],
)
def test_a_rule_that_is_wrong_is_refused(kind: str, change: dict[str, Any]) -> None:
    model = model_of(kind, 1024)
    masks = masks_of(model)
    wrong = tuple(mask.model_copy(update=change) for mask in masks)
    if wrong == masks:
        return
    with pytest.raises(VlmcError, match="not supported yet"):
        prove_masks(model, wrong, create_of(model))


def test_the_masks_of_a_compiled_generate_are_others() -> None:
    model = model_of("gemma4_unified_text", 1024)
    with pytest.raises(VlmcError, match="full_attention"):
        prove_masks(model, masks_of(model))


def test_a_window_that_holds_in_spans_is_told_from_one_that_does_not() -> None:
    for kind in ("gemma2", "gemma3_text"):
        model = model_of(kind, 1024)
        masks = masks_of(model)
        inside = not masks[-1].window_in_spans
        wrong = [mask.model_copy(update={"window_in_spans": inside}) for mask in masks]
        with pytest.raises(VlmcError, match="sliding_attention"):
            prove_masks(model, wrong)


def test_a_kind_of_layer_without_a_rule_is_refused() -> None:
    model = model_of("gemma3_text", 8)
    with pytest.raises(VlmcError, match="not supported yet"):
        prove_masks(model, masks_of(model)[:1])


def prompt_of(letters: str) -> Prompt:
    images = np.array([letter == "i" for letter in letters])
    return Prompt(np.zeros(len(letters), np.int64), np.where(images, np.cumsum(images) - 1, -1))


@given(
    st.text("ti", min_size=1, max_size=40), st.integers(1, 12), st.sampled_from(["images", None])
)
def test_no_step_splits_a_span_or_is_longer_than_it_must(
    letters: str, size: int, spans: Any
) -> None:
    prompt = prompt_of(letters)
    whole = whole_spans(prompt, [MaskSpec(spans=spans)])
    chunks = cut(prompt, size, at_images=False, whole=whole)
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert chunks[-1].stop == len(letters)
    for chunk in chunks:
        assert not any(first < chunk.stop < last for first, last in whole)
        assert chunk.stop - chunk.start <= size or (chunk.start, chunk.stop) in whole


def test_images_see_each_other_together_with_their_marks() -> None:
    letters = "ttmiimmttmiimmt"
    prompt = replace(prompt_of(letters), spans=(ImageSpan(3, 2, 0), ImageSpan(10, 2, 1)))
    mask = MaskSpec(input="x", spans="together", marks=(1, 2))
    assert whole_spans(prompt, [mask]) == ((2, 14),)
    marked = np.array([letter != "t" for letter in letters])
    both = marked[:, None] & marked[None]
    before = np.tri(len(letters), dtype=bool)
    seen = prefill_bias(mask, prompt, 2, 15)[0, 0] == 0
    assert np.array_equal(seen, (before | both)[2:])
    assert prefill_bias(mask, prompt, 14, 15).shape == (1, 1, 0, 0)
    alone = replace(prompt, spans=prompt.spans[1:])
    assert whole_spans(alone, [mask]) == ((9, 14),)


def test_where_the_mask_is_causal_the_bias_is_empty() -> None:
    prompt = prompt_of("ttttiiittt")
    images = MaskSpec(input="x", spans="images", window=3)
    assert prefill_bias(images, prompt, 0, 4).shape == (1, 1, 0, 0)
    assert prefill_bias(images, prompt, 4, 10).shape == (1, 1, 6, 10)
    assert prefill_bias(images, prompt, 7, 10).shape == (1, 1, 0, 0)
    assert decode_bias(images, np.array([10, 3])).shape == (2, 1, 0, 0)
    chunked = MaskSpec(input="x", chunk=8)
    assert prefill_bias(chunked, prompt, 0, 8).shape == (1, 1, 0, 0)
    assert prefill_bias(chunked, prompt, 6, 10).shape == (1, 1, 4, 10)
    assert decode_bias(chunked, np.array([7, 3])).shape == (2, 1, 0, 0)
    seen = decode_bias(chunked, np.array([9, 3]))[:, 0, 0] == 0
    assert seen.tolist() == [[False] * 8 + [True] * 2, [True] * 4 + [False] * 6]
