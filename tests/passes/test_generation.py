"""Generation settings against transformers' reading of the same files."""

import json

import pytest

from vlmc.bundle.manifest import LogitsSpec
from vlmc.errors import VlmcError
from vlmc.passes.generation import read_generation

TEXT = {"eos_token_id": 9, "min_length": 4, "no_repeat_ngram_size": 3}
CONFIG = {"eos_token_id": [3, 4], "repetition_penalty": 1.2, "text_config": TEXT}
CASES = {
    "both files": (CONFIG, {"eos_token_id": 7, "repetition_penalty": 1.05}),
    "no end token": (CONFIG, {"bos_token_id": 1}),
    "config alone": (CONFIG, None),
    "the text's end": ({"text_config": TEXT}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_values_are_where_transformers_finds_them(name, tmp_path):
    from transformers import GenerationConfig

    config, generation = CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is None:
        expected = GenerationConfig.from_pretrained(
            tmp_path, config_file_name="config.json", _from_model_config=True
        )
    else:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        expected = GenerationConfig.from_pretrained(tmp_path)
    found = read_generation(config, generation or {})
    ends = expected.eos_token_id
    assert list(found.eos_token_ids) == (
        [] if ends is None else ends if type(ends) is list else [ends]
    )
    assert found.logits.repetition_penalty == (expected.repetition_penalty or 1.0)
    assert found.logits.no_repeat_ngram_size == (expected.no_repeat_ngram_size or 0)
    assert found.logits.min_length == (expected.min_length or 0)


def test_a_decoder_that_generates_by_itself_knows_no_settings():
    found = read_generation(CONFIG, {"eos_token_id": 7, "suppress_tokens": [1]}, ends=(2,))
    assert found.eos_token_ids == (2,)
    assert found.logits == LogitsSpec()


def test_what_is_not_followed_is_named():
    values = {"num_beams": 4, "guidance_scale": 3.0, "encoder_repetition_penalty": 1.0}
    found = read_generation({}, values | {"max_length": 20, "do_sample": True})
    assert found.left_out == {"num_beams": 4, "guidance_scale": 3.0}
    assert read_generation({}, values, unused=("guidance_scale",)).left_out == {"num_beams": 4}
    assert (
        read_generation({}, {"num_beams": 1, "exponential_decay_length_penalty": None}).left_out
        == {}
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.05"),
        ("no_repeat_ngram_size", -1),
        ("bad_words_ids", [3]),
        ("bad_words_ids", [[]]),
        ("suppress_tokens", [-4]),
        ("min_new_tokens", 1.5),
        ("forced_eos_token_id", "2"),
        ("eos_token_id", True),
    ],
)
def test_values_of_another_kind_are_refused(key, value):
    with pytest.raises(VlmcError) as caught:
        read_generation({}, {key: value})
    assert caught.value.at.startswith(f"generation_config.json: {key}")
