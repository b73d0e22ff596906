"""What is read from an InternVL checkpoint's JSON, against transformers' own model."""

import json

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["internvl"]
IMAGES: Json = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "size": {"height": 56, "width": 56},
    "crop_to_patches": False,
}


def config(**changes: object) -> Json:
    tower: Json = {"image_size": [56, 56], "patch_size": [14, 14], "num_hidden_layers": 3}
    text: Json = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return {"model_type": "internvl", "vision_config": tower, "text_config": text} | changes


def facts(config: Json, images: Json = IMAGES, tokens: int = 4, **bounds: int) -> ModelFacts:
    processor: Json = {"image_seq_length": tokens}
    return FAMILY.facts(Checkpoint(config, processor, images, {}, {}, bounds))


@pytest.mark.parametrize(
    ("tower", "ratio", "layer", "tokens"),
    [
        ({}, 0.5, -1, 4),
        ({"image_size": 56, "patch_size": 7, "use_qk_norm": True}, 0.25, -2, 4),
        ({"norm_type": "rms_norm", "use_mean_pooling": False}, 1.0, 2, 16),
    ],
)
def test_features_are_those_of_transformers(
    tower: Json, ratio: float, layer: int, tokens: int
) -> None:
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 2}
    made = InternVLConfig(
        vision_config={**sizes, "image_size": [56, 56], "patch_size": [14, 14]}
        | {"num_hidden_layers": 3}
        | tower,
        text_config={"model_type": "qwen2", "num_key_value_heads": 1, "vocab_size": 60}
        | {**sizes, "num_hidden_layers": 2},
        image_token_id=50,
        image_seq_length=tokens,
        downsample_ratio=ratio,
        vision_feature_layer=layer,
        tie_word_embeddings=False,
    )
    found = facts(json.loads(made.to_json_string()), tokens=tokens)
    assert found.image_token_id == 50
    assert found.min_image_tokens == found.image_tokens(56, 56) == tokens
    assert found.image_tokens(56, 112) == 3 * tokens
    [pixels] = found.vision_inputs
    assert pixels.shape == ("tiles", 3, 56, 56)
    model = InternVLForConditionalGeneration(made).eval()
    given = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        features = FAMILY.vision(model)(given)
        expected = model.model.get_image_features(given).pooler_output
    assert features.shape == (3 * tokens, 32)
    torch.testing.assert_close(features, torch.cat(list(expected)))
    assert FAMILY.decoder(model) is model.model.language_model
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.1)
    assert found.weights.head == model.lm_head.weight.numel()


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import InternVLConfig

    theirs = InternVLConfig()
    images = IMAGES | {"size": {"height": 448, "width": 448}}
    found = FAMILY.facts(Checkpoint({"model_type": "internvl"}, {}, images, {}, {}))
    assert found.image_token_id == theirs.image_token_id
    assert found.min_image_tokens == theirs.image_seq_length
    assert found.text.model_type == theirs.text_config.model_type
    assert found.text.hidden == theirs.text_config.hidden_size
    assert found.weights is not None
    assert theirs.tie_word_embeddings
    assert found.weights.head == 0


def test_the_smallest_picture_takes_the_fewest_tiles() -> None:
    assert facts(config()).min_image_tokens == 4
    assert facts(config(), IMAGES | {"min_patches": 3}).min_image_tokens == 4 * 4
    held = facts(config(), max_tiles=2)
    assert held.image_tokens(56, 560) == 3 * 4
    assert facts(config()).image_tokens(56, 560) == 11 * 4


def tower(**changes: object) -> Json:
    value = config()["vision_config"]
    assert isinstance(value, dict)
    return {"vision_config": value | changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (tower(model_type="siglip_vision_model"), "'model_type' is 'siglip_vision_model'"),
        (tower(image_size=[56, 28]), "'image_size' is \\[56, 28\\]"),
        (tower(image_size=70), "does not divide a tile of 5 x 5 patches"),
        (tower(image_size=112), "counts 4 tokens for a tile, the model makes 16"),
        (tower(patch_size=57), "tile of 0 x 0|counts 4 tokens for a tile, the model makes 0"),
        ({"downsample_ratio": 0.25}, "counts 4 tokens for a tile, the model makes 1"),
        ({"downsample_ratio": 1 / 3}, "does not divide"),
        ({"downsample_ratio": 0}, "downsample_ratio: 0 does not divide"),
        ({"downsample_ratio": float("nan")}, "nan does not divide"),
        ({"downsample_ratio": "0.5"}, "'0.5' does not divide"),
        ({"vision_feature_layer": 4}, "4 is no layer of a tower of 3 layers"),
        ({"vision_feature_layer": 0}, "0 is no layer"),
        ({"vision_feature_layer": [-1]}, "is no layer"),
        ({"vision_feature_select_strategy": "full"}, "'full'"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config(**changes))


def test_tiles_of_another_size_than_the_towers_are_refused() -> None:
    other = IMAGES | {"size": {"height": 56, "width": 28}}
    with pytest.raises(VlmcError, match="tiles of 28 x 56 pixels, the vision tower takes 56 x 56"):
        facts(config(), other)


def test_a_tokenizer_without_the_frame_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tests.checkpoints.tiles import internvl
    from vlmc.families.prompts import read_prompt

    internvl(tmp_path)

    def read(frame: tuple[str, str] | None) -> list[tuple[str, ...]]:
        spec, _ = read_prompt(tmp_path, None, 5, 380, plain_image="x", image_frame=frame)
        return [spec.image_prefix, spec.image_suffix]

    assert read(FAMILY.image_frame) == [("<img>",), ("</img>",)]
    assert read(None) == [(), ()]
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    del values["end_image_token"]
    path.write_text(json.dumps(values))
    with pytest.raises(VlmcError, match="has no 'end_image_token', which this family needs"):
        read(FAMILY.image_frame)
