"""Qwen2-VL and Qwen2.5-VL: facts, flat or nested; the towers; and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

QWEN_IMAGES: Json = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}


def checkpoint(config: Json, images: Json) -> Checkpoint:
    return Checkpoint(config, {}, images, {}, {})


def qwen(**changes: object) -> Json:
    config: Json = {"model_type": "qwen2_vl", "hidden_size": 128, "num_attention_heads": 4}
    tower: Json = {"hidden_size": 128, "patch_size": 14}
    return config | {"num_key_value_heads": 2, "vision_config": tower} | changes


def facts(config: Json, images: Json) -> ModelFacts:
    return by_model_type(str(config["model_type"])).facts(checkpoint(config, images))


def test_qwen2_vl_flat_and_nested_are_the_same() -> None:
    flat = facts(qwen(), QWEN_IMAGES)
    nested = {k: v for k, v in qwen().items() if k in {"model_type", "vision_config"}}
    text = {k: v for k, v in qwen().items() if k not in nested}
    again = facts(nested | {"text_config": text}, QWEN_IMAGES)
    assert again.text == flat.text
    assert flat.text.model_type == "qwen2_vl_text"
    assert flat.positions.scheme == "mrope"
    assert flat.image_token_id == 151655
    patches, places = flat.vision_inputs
    assert patches.shape == ("patches", 3 * 2 * 14 * 14)
    assert places.shape == ("patches", 2)


def test_qwen2_vl_bounds_come_from_the_recipe() -> None:
    given = checkpoint(qwen(), QWEN_IMAGES | {"min_pixels": 3136, "max_pixels": 12845056})
    family = FAMILIES["qwen2-vl"]
    assert family.facts(given).min_image_tokens == 4
    bounded = family.facts(replace(given, image_bounds={"min_pixels": 7840, "max_pixels": 100352}))
    assert bounded.min_image_tokens == 10
    assert bounded.image_tokens(28, 28) >= 10
    assert bounded.image_tokens(3000, 4000) <= 128


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"hidden_size": 64}}, "features have 64 numbers"),
        ({"vision_config": {"hidden_size": 128, "patch_size": 16}}, "patch_size is 16"),
        ({"vision_config": {"hidden_size": 128, "spatial_merge_size": 3}}, "merge_size is 2"),
    ],
)
def test_qwen2_vl_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(qwen(**changes), QWEN_IMAGES)


def test_qwen2_vl_vision_is_that_of_transformers() -> None:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 60,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 14,
        },
        image_token_id=50,
    )
    found = facts(json.loads(config.to_json_string()), QWEN_IMAGES)
    model = Qwen2VLForConditionalGeneration(config).eval()
    assert found.weights is not None
    tower = sum(p.numel() for p in model.model.visual.parameters())
    assert found.weights.vision == pytest.approx(tower, rel=0.05)

    from vlmc.runtime.images.native_grid import positions

    patches = torch.randn(4 * 6, 3 * 2 * 14 * 14)
    with torch.no_grad():
        features = FAMILIES["qwen2-vl"].vision(model)(patches, torch.from_numpy(positions(4, 6, 2)))
        expected = model.model.visual(patches, grid_thw=torch.tensor([[1, 4, 6]])).pooler_output
    torch.testing.assert_close(features, expected)


def qwen2_5(**tower: object) -> Json:
    sizes: Json = {"hidden_size": 64, "out_hidden_size": 128, "patch_size": 14}
    return qwen(model_type="qwen2_5_vl", vision_config=sizes | tower)


def test_qwen2_5_vl_facts() -> None:
    found = facts(qwen2_5(), QWEN_IMAGES)
    assert found.text.model_type == "qwen2_5_vl_text"
    assert found.positions.scheme == "mrope"
    shapes = {spec.name: spec.shape for spec in found.vision_inputs}
    assert shapes == {
        "pixel_values": ("patches", 3 * 2 * 14 * 14),
        "patch_positions": ("patches", 2),
        "window_patches": ("windows", 8 * 8),
        "patch_slots": ("patches",),
    }
    # 100 pixels are 7 patches: 3 merged ones and a rest that transformers drops.
    small = facts(qwen2_5(window_size=100), QWEN_IMAGES)
    assert small.vision_inputs[2].shape == ("windows", 6 * 6)


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ({"out_hidden_size": 64}, "features have 64 numbers"),
        ({"patch_size": 16}, "patch_size is 16"),
        ({"window_size": 27}, "a window of 27 pixels is smaller than a merged patch of 28"),
        ({"fullatt_block_indexes": 7}, "fullatt_block_indexes: 7 is not a list of layers"),
    ],
)
def test_qwen2_5_vl_variants_that_are_refused(tower: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(qwen2_5(**tower), QWEN_IMAGES)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_qwen2_5_vl_vision_is_that_of_transformers(attention: str, tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from tests.checkpoints.native import qwen2_5_vl
    from vlmc.runtime.images.native_grid import positions, windows

    folder = qwen2_5_vl(tmp_path)
    read = read_checkpoint(folder, tokenizer=False)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, attn_implementation=attention
    ).eval()
    # Equal windows; ragged ones; fewer patches than a window has.
    grids = [(8, 8), (4, 6), (10, 14), (2, 12), (2, 2)]
    given = [torch.randn(rows * columns, 3 * 2 * 7 * 7) for rows, columns in grids]
    with torch.no_grad():
        wanted = [
            model.model.visual(patches, grid_thw=torch.tensor([[1, *grid]])).pooler_output
            for patches, grid in zip(given, grids, strict=True)
        ]
        vision = FAMILIES["qwen2.5-vl"].vision(model)
        for patches, grid, expected in zip(given, grids, wanted, strict=True):
            places = positions(*grid, 2)
            inputs = (places, *windows(places, 4))
            features = vision(patches, *map(torch.from_numpy, inputs))
            assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    counted = by_model_type("qwen2_5_vl").facts(read).weights
    assert counted is not None
    tower = sum(p.numel() for p in model.model.visual.parameters())
    assert counted.vision == pytest.approx(tower, rel=0.05)
