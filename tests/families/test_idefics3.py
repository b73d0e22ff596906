"""Idefics3 and SmolVLM: what is read from their JSON, and their towers, against transformers."""

import json
from typing import Any

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

SIZES = {"image_size": 56, "patch_size": 14, "hidden_size": 48, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "vocab_size": 50}
TEXT |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
IMAGES: Json = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 168},
    "max_image_size": {"longest_edge": 56},
}


def facts(config: Json, images: Json = IMAGES, tokens: int = 4) -> ModelFacts:
    given = Checkpoint(config, {"image_seq_len": tokens}, images, {}, {})
    return by_model_type(str(config["model_type"])).facts(given)


def idefics3(**changes: object) -> Json:
    config: Json = {"model_type": "idefics3", "vision_config": SIZES, "text_config": TEXT}
    return config | {"scale_factor": 2, "image_token_id": 7} | changes


def model_of(name: str, **tower: Any) -> Any:
    import transformers as hf

    config = getattr(hf, f"{name}Config")(
        vision_config={**SIZES, **tower}, text_config=TEXT, scale_factor=2, image_token_id=7
    )
    return getattr(hf, f"{name}ForConditionalGeneration")(config).eval()


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM"])
def test_vision_and_sizes_are_those_of_transformers(name: str) -> None:
    import torch

    model = model_of(name)
    found = facts(json.loads(model.config.to_json_string()))
    assert found.image_token_id == 7
    [pixels] = found.vision_inputs
    assert pixels.shape == ("tiles", 3, 56, 56)
    assert FAMILIES["idefics3"].decoder(model) is model.model.text_model
    tiles = torch.randn(3, 3, 56, 56)
    mask = torch.ones(1, 3, 56, 56, dtype=torch.bool)
    with torch.no_grad():
        features = FAMILIES["idefics3"].vision(model)(tiles)
        [expected] = model.get_image_features(tiles[None], mask, return_dict=True).pooler_output
    assert features.shape == (3 * 4, 32)
    torch.testing.assert_close(features, expected)
    assert found.weights is not None
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("side", [*range(1, 40), 64])
def test_patches_are_placed_where_transformers_places_them(side: int) -> None:
    import torch
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

    from vlmc.families.towers import _patch_places

    config = model_of("Idefics3").config.vision_config
    config.patch_size, config.image_size, config.hidden_size = 1, side, 1
    embeddings = Idefics3VisionEmbeddings(config)
    embeddings.position_embedding.weight.data = torch.arange(side * side)[:, None].float()
    embeddings.patch_embedding.weight.data.zero_()
    embeddings.patch_embedding.bias.data.zero_()
    with torch.no_grad():
        mask = torch.ones(1, side, side, dtype=torch.bool)
        places = embeddings(torch.zeros(1, 3, side, side), mask)[0, :, 0]
    assert np.array_equal(_patch_places(side).numpy(), places.numpy())


def test_tokens_count_the_marks_around_tiles() -> None:
    found = facts(idefics3())
    # Three tiles in a row and the whole: four times four, nine marks, two lines, one end.
    assert found.min_image_tokens == found.image_tokens(1, 4096) == 16 + 3 * 2 + 2 + 2 + 1
    assert found.image_tokens(100, 100) == 40 + 9 * 2 + 4 + 2 + 1
    alone = facts(idefics3(), IMAGES | {"do_image_splitting": False})
    assert alone.min_image_tokens == alone.image_tokens(100, 3000) == 4 + 3


@pytest.mark.parametrize(
    ("changes", "tokens", "expected"),
    [
        ({"scale_factor": 3}, 4, "4 patches a side do not divide into squares of 3"),
        ({"scale_factor": 8}, 4, "do not divide"),
        ({"vision_config": {**SIZES, "patch_size": 100}}, 4, "0 patches a side"),
        ({"vision_config": {**SIZES, "image_size": 28}}, 1, "tower takes a longest_edge of 28"),
        ({}, 64, "'image_seq_len' is 64, the tower makes 4 tokens"),
        ({"text_config": {"model_type": "mamba9"}}, 4, "defaults of the text model 'mamba9'"),
    ],
)
def test_variants_that_are_refused(changes: Json, tokens: int, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(idefics3(**changes), tokens=tokens)


def test_absent_sizes_are_those_of_the_configuration_class() -> None:
    import torch
    import transformers as hf

    config: Json = {"model_type": "idefics3", "vision_config": {}, "text_config": {}}
    images: Json = {**IMAGES, "max_image_size": {"longest_edge": 224}}
    with pytest.raises(VlmcError, match="7 patches a side do not divide into squares of 2"):
        facts(config, images)
    config["vision_config"] = {"patch_size": 28}
    found = facts(config, images, tokens=16)
    with torch.device("meta"):
        model = hf.Idefics3ForConditionalGeneration(hf.Idefics3Config(**config))
    assert found.image_token_id == model.config.image_token_id
    assert found.weights is not None
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.005)
