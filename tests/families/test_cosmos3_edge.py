"""What is read of a Cosmos 3 Edge checkpoint, against transformers' own."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["cosmos3-edge"]
IMAGES: Json = {"image_processor_type": "Cosmos3EdgeImageProcessor"}


def facts(config: Json | None = None, images: Json | None = None, **tower: object) -> ModelFacts:
    given: Json = {"vision_config": tower, "text_config": {}, **(config or {})}
    return FAMILY.facts(Checkpoint(given, {}, {**IMAGES, **(images or {})}, {}, {}))


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_left_out_is_as_transformers_has_it(tied: bool) -> None:
    import torch
    from transformers import Cosmos3EdgeConfig, Cosmos3EdgeForConditionalGeneration

    made = Cosmos3EdgeConfig(
        tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=11
    )
    found = facts({"tie_word_embeddings": tied})
    assert found.image_token_id == made.image_token_id
    assert found.positions.scheme == "mrope"
    assert found.multiples == {"patches": 4}
    with torch.device("meta"):
        model = Cosmos3EdgeForConditionalGeneration(made)
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())  # noqa: E731
    assert found.weights is not None
    tower = count(model.model.visual, model.model.projector)
    assert found.weights.vision == pytest.approx(tower, rel=0.01)
    language = count(model.model.language_model.layers)
    assert found.weights.language == pytest.approx(language, rel=0.01)
    # Its head is a table of its own, tied or not.
    assert found.weights.head == found.weights.embedding == count(model.lm_head)
    assert model.lm_head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("tower", "images", "message"),
    [
        ({"num_patches": 250}, {}, "250 positions do not make a square"),
        ({"num_attention_heads": 7}, {}, "hidden size 1152 does not divide into 7 heads"),
        ({"num_channels": 4}, {}, "pictures have 3 channels"),
        ({"patch_size": 14}, {}, "tower's patch_size is 14, the image processor's"),
        ({}, {"temporal_patch_size": 2}, "temporal_patch_size is 1, the image processor's"),
        ({"spatial_merge_size": 1}, {}, "tower's spatial_merge_size is 1, the image"),
        ({}, {"image_processor_type": "CLIPImageProcessor"}, "unknown image processor"),
    ],
)
def test_what_cannot_be_served_is_refused(tower: Json, images: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message):
        facts(None, images, **tower)


def test_a_processor_is_asked_which_tokens_are_pictures() -> None:
    from types import SimpleNamespace

    from transformers import Cosmos3EdgeModel, Qwen2_5OmniThinkerForConditionalGeneration

    from vlmc.passes.token_types import ask_token_types

    for kind, asked in (
        (Cosmos3EdgeModel, True),
        (Qwen2_5OmniThinkerForConditionalGeneration, False),
    ):
        processor = SimpleNamespace(return_mm_token_type_ids=False)
        ask_token_types(processor, SimpleNamespace(model=kind))
        assert processor.return_mm_token_type_ids is asked
