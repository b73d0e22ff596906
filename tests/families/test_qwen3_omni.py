"""What is read of a Qwen3-Omni thinker, against transformers' own."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["qwen3-omni"]
IMAGES: Json = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}
# The class's own 28 heads do not divide 2048; such a decoder's rotary positions fit no head.
TEXT: Json = {"head_dim": 128, "num_hidden_layers": 6}


def facts(**config: object) -> ModelFacts:
    given: Json = {
        "vision_start_token_id": 6,
        "vision_config": {"out_hidden_size": 2048},
        "text_config": TEXT,
        **config,
    }
    return FAMILY.facts(Checkpoint(given, {}, IMAGES, {}, {}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own", [{}, {"decoder_sparse_step": 2, "mlp_only_layers": [1]}])
def test_what_is_left_out_is_as_transformers_has_it(tied: bool, own: Json) -> None:
    import torch
    from transformers import Qwen3OmniMoeThinkerConfig as Config
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration as Thinker

    tower: Json = {"out_hidden_size": 2048}
    text = {**TEXT, **own}
    made = Config(tie_word_embeddings=tied, vision_config=tower, text_config=text)
    said = {"tie_word_embeddings": True} if tied else {}
    found = facts(text_config=text, **said)
    assert found.image_token_id == made.image_token_id
    assert found.text.max_positions == made.text_config.max_position_embeddings
    with torch.device("meta"):
        model = Thinker(made)
    count = lambda part: sum(p.numel() for p in part.parameters())  # noqa: E731
    assert found.weights is not None
    assert found.weights.vision == pytest.approx(count(model.model.visual), rel=0.01)
    language = count(model.model.language_model.layers)
    assert found.weights.language == pytest.approx(language, rel=0.01)
    assert found.weights.head == (0 if tied else count(model.lm_head))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_start_token_id": None}, "'vision_start_token_id' is missing"),
        ({"image_token_id": "<|image_pad|>"}, "'image_token_id' is '<|image_pad|>'"),
        ({"text_config": {**TEXT, "mlp_only_layers": 3}}, "3 is not a list of layers"),
        ({"vision_config": {"out_hidden_size": 64}}, "features have 64 numbers"),
    ],
)
def test_what_cannot_be_served_is_refused(config: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message.replace("|", r"\|")):
        facts(**config)


def test_the_whole_model_is_its_thinker() -> None:
    inner: Json = {
        "vision_start_token_id": 6,
        "vision_config": {"out_hidden_size": 2048},
        "text_config": {**TEXT, "num_hidden_layers": 3},
    }
    given: Json = {"model_type": "qwen3_omni_moe", "thinker_config": inner}
    read = Checkpoint(given, {}, IMAGES, {"eos_token_id": 9}, {})
    found = FAMILY.facts(read)
    # The default of its ``generate``.
    assert (found.text.layers, found.image_token_id, found.ends) == (3, 151655, (151645,))
    inner["text_config"]["eos_token_id"] = 5
    assert FAMILY.facts(read).ends == (5,)
    assert facts(eos_token_id=5).ends is None


def test_the_end_is_that_of_the_wholes_generate() -> None:
    import inspect

    from transformers import Qwen3OmniMoeForConditionalGeneration as Whole

    own = inspect.signature(Whole.generate).parameters["thinker_eos_token_id"].default
    given: Json = {
        "model_type": "qwen3_omni_moe",
        "thinker_config": {
            "vision_start_token_id": 6,
            "vision_config": {"out_hidden_size": 2048},
            "text_config": TEXT,
        },
    }
    assert FAMILY.facts(Checkpoint(given, {}, IMAGES, {}, {})).ends == (own,)
