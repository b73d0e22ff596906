"""What is read from a DeepSeek-VL or Janus checkpoint's JSON, against transformers' own models."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES: Json = {
    "image_processor_type": "JanusImageProcessor",
    "size": {"height": 56, "width": 56},
}


def janus(**tower: object) -> Json:
    sizes: Json = {"image_size": 56, "patch_size": 14, "projection_dim": 32, **SIZES}
    return {"model_type": "janus", "vision_config": sizes | tower, "text_config": SIZES}


def deepseek(**tower: object) -> Json:
    sizes: Json = {"image_size": 56, "patch_size": 14, **SIZES}
    return {"model_type": "deepseek_vl", "vision_config": sizes | tower, "text_config": SIZES}


def facts(config: Json, images: Json = IMAGES, **processor: object) -> ModelFacts:
    given: Json = {"num_image_tokens": 16, **processor}
    family = by_model_type(str(config["model_type"]))
    return family.facts(Checkpoint(config, given, IMAGES | images, {}, {}))


@pytest.mark.parametrize("name", ["deepseek-vl", "janus"])
def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(
    name: str, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints import MAKERS

    folder = MAKERS[name](tmp_path)
    read = read_checkpoint(folder)
    family = by_model_type(str(read.config["model_type"]))
    found = family.facts(read)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_tokens(10, 300) == found.min_image_tokens == 16
    assert found.image_token_id == model.config.image_token_id
    given = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        features = family.vision(model)(given)
        expected = model.model.get_image_features(given).pooler_output[0]
    torch.testing.assert_close(features, expected)
    assert family.decoder(model) is model.model.language_model
    assert found.weights is not None
    parts = (model.model.vision_model, model.model.aligner)
    named = [named for part in parts for named in part.named_parameters()]
    # SigLIP's pooling head is built, and never read.
    real = sum(p.numel() for name, p in named if not name.startswith("head."))
    assert found.weights.vision == pytest.approx(real, rel=0.1)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import DeepseekVLConfig, JanusConfig

    images = {"size": {"height": 384, "width": 384}}
    found = facts({"model_type": "janus"} | {"text_config": {"hidden_size": 2048}}, images,
                  num_image_tokens=None)  # fmt: skip
    assert found.min_image_tokens == JanusConfig().vision_config.num_image_tokens
    assert found.image_token_id == JanusConfig().image_token_id
    bare = {"model_type": "deepseek_vl"}
    images = {"size": {"height": 224, "width": 224}}
    assert facts(bare, images, num_image_tokens=196).image_token_id == (
        DeepseekVLConfig().image_token_id
    )


def test_the_processors_own_words_stand_first() -> None:
    from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

    assert facts(janus(), use_default_system_prompt=True).opening == DEFAULT_SYSTEM_PROMPT
    assert facts(janus()).opening == ""


@pytest.mark.parametrize(
    ("config", "images", "tokens", "expected"),
    [
        (janus(), {}, 576, "counts 576 tokens for an image, the model makes 16"),
        (deepseek(), {}, 9, "counts 9 tokens for an image, the model makes 16"),
        (janus(projection_dim=64), {}, 16, "features have 64 numbers, the decoder takes 32"),
        (janus(model_type="siglip_vision_model"), {}, 16, "'siglip_vision_model'"),
        (deepseek(model_type="dinov2"), {}, 16, "'dinov2'"),
        (janus(), {"size": {"height": 56, "width": 57}}, 16, "is no square"),
        (janus(), {"size": 64}, 16, "pictures of 64 x 64 pixels"),
        (janus(), {"do_pad": False}, 16, "would keep different sizes"),
    ],
)
def test_variants_that_are_refused(config: Json, images: Json, tokens: int, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config, images, num_image_tokens=tokens)
