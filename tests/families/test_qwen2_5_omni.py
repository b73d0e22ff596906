"""What is read of a Qwen2.5-Omni thinker, against transformers' own."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["qwen2.5-omni"]
IMAGES: Json = {"image_processor_type": "Qwen2VLImageProcessor"}


def facts(**config: object) -> ModelFacts:
    return FAMILY.facts(Checkpoint({"vision_start_token_id": 6, **config}, {}, IMAGES, {}, {}))


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_left_out_is_as_transformers_has_it(tied: bool) -> None:
    import torch
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    made = Qwen2_5OmniThinkerConfig(tie_word_embeddings=tied)
    found = facts(tie_word_embeddings=tied) if tied else facts()
    assert found.image_token_id == made.image_token_id
    assert found.text.max_positions == made.text_config.max_position_embeddings
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(made)
    count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
    assert found.weights is not None
    assert found.weights.vision == pytest.approx(count(model.model.visual), rel=0.01)
    language = count(model.model.language_model.layers)
    assert found.weights.language == pytest.approx(language, rel=0.01)
    assert found.weights.head == (0 if tied else count(model.lm_head))


@pytest.mark.parametrize("key", ["image_token_id", "image_token_index"])
def test_a_picture_has_its_token_by_either_name(key: str) -> None:
    assert facts(**{key: 9}).image_token_id == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_start_token_id": None}, "'vision_start_token_id' is missing"),
        ({"image_token_index": "<|IMAGE|>"}, "'image_token_index' is '<|IMAGE|>'"),
        ({"vision_config": {"window_size": 20}}, "a window of 20 pixels is smaller"),
        ({"vision_config": {"out_hidden_size": 64}}, "features have 64 numbers"),
    ],
)
def test_what_cannot_be_served_is_refused(config: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message.replace("|", r"\|")):
        facts(**config)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_sounds_and_films_are_refused(kind: str) -> None:
    from vlmc.runtime.messages import normalize_messages

    asked = {"role": "user", "content": [{"type": kind, kind: "a.bin"}]}
    with pytest.raises(VlmcError, match=f"unknown part '{kind}'"):
        normalize_messages([asked])


def test_the_whole_model_is_its_thinker() -> None:
    inner: Json = {"vision_start_token_id": 6, "text_config": {"num_hidden_layers": 3}}
    given: Json = {"model_type": "qwen2_5_omni", "thinker_config": inner}
    read = Checkpoint(given, {}, IMAGES, {"eos_token_id": 9}, {})
    found = FAMILY.facts(read)
    assert (found.text.layers, found.image_token_id, found.ends) == (3, 151655, ())
    inner["text_config"]["eos_token_id"] = 5
    assert FAMILY.facts(read).ends == (5,)
    inner["eos_token_id"] = [4, 3]
    assert FAMILY.facts(read).ends == (4, 3)
    assert facts(eos_token_id=5).ends is None
    inner["eos_token_id"] = "<|im_end|>"
    with pytest.raises(VlmcError, match="'eos_token_id' is '<|im_end|>'".replace("|", r"\|")):
        FAMILY.facts(read)


def test_the_processor_is_the_whole_models_where_no_file_names_one(tmp_path: Path) -> None:
    from transformers import Qwen2_5OmniThinkerConfig

    from vlmc.passes.processor_class import processor_class

    Qwen2_5OmniThinkerConfig().save_pretrained(tmp_path)
    assert processor_class(tmp_path).__name__ == "Qwen2_5OmniProcessor"
