"""The decoder's sizes that families read, against transformers' own configuration classes."""

from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.families.text import TEXT_DEFAULTS, text_facts
from vlmc.schema import Json


@pytest.mark.parametrize("model_type", sorted(TEXT_DEFAULTS))
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        {"hidden_size": 1024, "num_attention_heads": 64, "head_dim": 48},
    ],
)
def test_text_defaults_are_those_of_transformers(model_type: str, given: Json) -> None:
    assert_text_equals_transformers(model_type, given)
    known, config = TEXT_DEFAULTS[model_type], text_config(model_type, {})
    inner = getattr(config, "intermediate_size", 0)  # Gemma 3n's class makes one for each layer
    assert known.intermediate == (inner[0] if isinstance(inner, list) else inner)
    assert known.tied == bool(getattr(config, "tie_word_embeddings", False))


# Other classes refuse null.
@pytest.mark.parametrize("model_type", ["granite", "llama", "qwen2", "qwen2_vl_text"])
def test_null_means_derived(model_type: str) -> None:
    given: Json = {"num_attention_heads": 16, "num_key_value_heads": None}
    assert_text_equals_transformers(model_type, given)
    assert text_facts(given, model_type).kv_heads == 16


def text_config(model_type: str, given: Json) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type in ("gemma4_text", "gemma4_unified_text"):  # heads of all layers alike
        given = {"global_head_dim": given.get("head_dim", 256), **given}
    if model_type == "cosmos3_edge_text":  # its class asks for sections that fill half a head
        sections = [given.get("head_dim", 128) // 2 - 2, 1, 1]
        given = {"rope_parameters": {"rope_type": "default", "mrope_section": sections}, **given}
    return CONFIG_MAPPING[model_type](pad_token_id=0, bos_token_id=1, eos_token_id=2, **given)


def assert_text_equals_transformers(model_type: str, given: Json) -> None:
    config = text_config(model_type, given)
    found = text_facts(given, model_type)
    assert found.layers == config.num_hidden_layers
    assert found.hidden == config.hidden_size
    assert found.heads == config.num_attention_heads
    grouped = TEXT_DEFAULTS[model_type].grouped
    assert found.kv_heads == (config.num_key_value_heads if grouped else found.heads)
    assert found.head_dim == (
        getattr(config, "head_dim", None) or config.hidden_size // found.heads
    )
    assert found.vocab == config.vocab_size
    assert found.max_positions == config.max_position_embeddings


def test_unknown_text_models_need_their_sizes() -> None:
    sizes: Json = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    found = text_facts(sizes, "brand_new")
    assert (found.kv_heads, found.head_dim, found.max_positions) == (4, 16, None)
    with pytest.raises(VlmcError, match="'vocab_size' is missing") as caught:
        text_facts({k: v for k, v in sizes.items() if k != "vocab_size"}, "qwen4")
    assert "did you mean 'qwen" in str(caught.value)


def test_latent_attention_has_keys_of_every_head() -> None:
    sizes: Json = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "vocab_size": 100,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
    }
    found = text_facts(sizes, "deepseek_v3")
    assert (found.kv_heads, found.head_dim) == (4, 24)
    with pytest.raises(VlmcError, match="'qk_rope_head_dim' is missing"):
        text_facts({k: v for k, v in sizes.items() if k != "qk_rope_head_dim"}, "deepseek_v3")


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, [64]])
def test_sizes_that_are_no_sizes(value: object) -> None:
    with pytest.raises(VlmcError, match=r"'hidden_size' is .*, not a whole number"):
        text_facts({"hidden_size": value}, "llama")


def test_hidden_size_must_divide_into_heads() -> None:
    with pytest.raises(VlmcError, match="does not divide"):
        text_facts({"hidden_size": 100, "num_attention_heads": 3}, "llama")
