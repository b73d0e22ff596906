"""LLaVA and VipLLaVA: the features they count, the layers they read, and what is refused."""

import json

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

CLIP_IMAGES: Json = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
}


def llava(**changes: object) -> Json:
    config: Json = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "num_hidden_layers": 3,
        },
    }
    return config | changes


def facts(config: Json, images: Json) -> ModelFacts:
    read = Checkpoint(config, {}, images, {}, {})
    return by_model_type(str(config["model_type"])).facts(read)


@pytest.mark.parametrize(
    ("tower", "strategy", "tokens"),
    [
        ("clip_vision_model", "default", 16),
        ("clip_vision_model", "full", 17),
        ("siglip_vision_model", "full", 16),
        ("siglip_vision_model", "default", 15),
    ],
)
def test_llava_counts_the_features_transformers_makes(
    tower: str, strategy: str, tokens: int
) -> None:
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
    }
    vision = {k: v for k, v in sizes.items() if k not in {"vocab_size", "num_key_value_heads"}}
    vision |= {"model_type": tower, "image_size": 60, "patch_size": 14}
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **sizes},
        vision_feature_select_strategy=strategy,
        image_token_index=7,
    )
    images = CLIP_IMAGES | {"crop_size": {"height": 60, "width": 60}}
    found = facts(json.loads(config.to_json_string()), images)
    assert found.image_tokens(480, 640) == found.min_image_tokens == tokens
    assert found.image_token_id == 7
    [pixels] = found.vision_inputs
    assert pixels.shape == (1, 3, 60, 60)
    model = LlavaForConditionalGeneration(config).eval()
    wrapped = FAMILIES["llava"].vision(model)
    with torch.no_grad():
        given = torch.zeros(1, 3, 60, 60)
        features = wrapped(given)
        expected = model.model.get_image_features(
            given,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=strategy,
        ).pooler_output[0]
    assert features.shape == (tokens, 32)
    torch.testing.assert_close(features, expected)
    assert FAMILIES["llava"].decoder(model) is model.model.language_model
    assert found.weights is not None
    counted = found.weights.language + found.weights.embedding + found.weights.head
    real = sum(p.numel() for p in model.model.language_model.parameters())
    real += model.lm_head.weight.numel()
    assert counted == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"model_type": "pixtral"}}, "'model_type' is 'pixtral'"),
        ({"vision_config": 3}, "'vision_config' is not a mapping"),
        ({"vision_feature_select_strategy": "half"}, "'half'"),
        ({"vision_feature_layer": 9}, "layer 9 of a tower of 3 layers"),
        ({"vision_feature_layer": "last"}, "neither a layer nor a list"),
        ({"vision_feature_layer": []}, "no layer is chosen"),
        ({"image_token_index": -1}, "'image_token_index' is -1"),
        ({"text_config": {"model_type": "mamba9"}}, "defaults of the text model 'mamba9'"),
    ],
)
def test_llava_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(llava(**changes), CLIP_IMAGES)


def test_llava_needs_the_processor_of_its_tower() -> None:
    other = CLIP_IMAGES | {"crop_size": {"height": 28, "width": 28}}
    with pytest.raises(VlmcError, match="28 x 28 pixels"):
        facts(llava(), other)


def test_llava_without_a_vision_config_is_clip_l() -> None:
    images = CLIP_IMAGES | {"crop_size": {"height": 336, "width": 336}}
    assert facts(llava(vision_config=None), images).min_image_tokens == 576


def test_both_names_of_the_placeholder() -> None:
    assert facts(llava(image_token_index=9), CLIP_IMAGES).image_token_id == 9
    assert facts(llava(image_token_id=8), CLIP_IMAGES).image_token_id == 8
    assert facts(llava(), CLIP_IMAGES).image_token_id == 32000


@pytest.mark.parametrize("key", ["vision_feature_layer", "vision_feature_layers"])
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_vipllava_reads_the_layers_transformers_reads(tower: str, key: str) -> None:
    import torch
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    config = VipLlavaConfig(
        vision_config={
            "model_type": tower,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
        | {"intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 50},
        vision_feature_layer=[-2, -4, 0],
        image_token_index=7,
    )
    written = json.loads(config.to_json_string())
    written[key] = written.pop("vision_feature_layer")
    found = facts(written, CLIP_IMAGES)
    model = VipLlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        features = FAMILIES["vipllava"].vision(model)(pixels)
        expected = model.model.get_image_features(pixels).pooler_output[0]
    assert features.shape == (found.min_image_tokens, 64)
    assert found.image_token_id == 7
    torch.testing.assert_close(features, expected)
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "layer -5 of a tower of 3 layers"),
        ({"vision_feature_layers": "last"}, "neither a layer nor a list"),
        ({"vision_feature_layer": 9}, "layer 9 of a tower of 3 layers"),
        ({"vision_feature_layer": []}, "no layer is chosen"),
    ],
)
def test_vipllava_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(llava(model_type="vipllava", **changes), CLIP_IMAGES)
