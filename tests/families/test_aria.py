"""Aria: what is read from its JSON, its tower and its layers of experts, against transformers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.aria import aria
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.quarters_processor import ARIA_CLASSES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["aria"]
IMAGES: Json = {"image_processor_type": "AriaImageProcessor"}
TOWER: Json = {"patch_size": 14, "image_size": 980}


def facts(config: Json, images: Json | None = None, processor: Json | None = None) -> ModelFacts:
    config = {"vision_config": TOWER, **config}
    return FAMILY.facts(Checkpoint(config, processor or {}, IMAGES | (images or {}), {}, {}))


@pytest.mark.parametrize("shape", [(97, 31), (30, 90), (64, 64), (2000, 900), (5, 40)], ids=str)
@pytest.mark.parametrize("least", [140, 336, 980])
def test_patches_equal_transformers_bit_for_bit(shape: tuple[int, int], least: int) -> None:
    from transformers import AriaImageProcessorPil

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*shape[::-1], 3), dtype=np.uint8))
    found = facts({}, {"min_image_size": least})
    ours = prepare(picture, found.images).tensors
    theirs = AriaImageProcessorPil(min_image_size=least)(picture, return_tensors="np")
    seen = theirs["pixel_mask"][0].reshape(70, 14, 70, 14).any(axis=(1, 3))
    patches = theirs["pixel_values"][0].reshape(3, 70, 14, 70, 14).transpose(1, 3, 0, 2, 4)
    assert np.array_equal(ours["pixel_values"], patches[seen].reshape(-1, 3 * 14 * 14))
    assert ours["tile_patches"].tolist() == [list(range(seen.sum()))]


def test_the_processor_never_cuts_pictures_nor_shrinks_its_square(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    folder = aria(tmp_path, images={"max_image_size": 490, "split_image": True})
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    picture = Image.new("RGB", (300, 100))
    made = processor(text=["<image>"], images=[picture], return_tensors="np")
    assert made["pixel_values"].shape == (1, 3, 980, 980)
    found = FAMILY.facts(read_checkpoint(folder))
    assert (made["input_ids"] == found.image_token_id).sum() == found.image_tokens(100, 300) == 5


def test_layers_of_experts_give_what_transformers_gives(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    folder = aria(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    layer = model.model.language_model.layers[0].mlp
    states = torch.randn(2, 7, 64)
    with torch.no_grad():
        expected = layer(states)
        assert FAMILY.decoder(model) is model.model.language_model
        torch.testing.assert_close(layer(states), expected)
    counted = FAMILY.facts(read_checkpoint(folder, tokenizer=False)).weights
    assert counted is not None
    stack = model.model.language_model
    real = sum(p.numel() for p in stack.layers.parameters())
    assert counted.language == pytest.approx(real, rel=0.02)
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert counted.vision == pytest.approx(real, rel=0.02)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import transformers as hf

    config = hf.AriaConfig()
    found = facts({})
    assert found.image_token_id == config.image_token_id
    assert found.min_image_tokens == config.projector_patch_to_query_dict[4900]
    for key, value in ARIA_CLASSES["AriaImageProcessor"].items():
        if key not in ("do_resize", "default_to_square"):
            assert getattr(hf.AriaImageProcessorPil, key) == value, key


@pytest.mark.parametrize(
    ("config", "images", "processor", "expected"),
    [
        ({"vision_config": {"model_type": "siglip"}}, {}, {}, "'model_type' is 'siglip'"),
        ({"vision_config": {**TOWER, "patch_size": 20}}, {}, {}, "no queries for the 2401 patches"),
        ({"projector_patch_to_query_dict": {"x": 3}}, {}, {}, "'x' is no whole number"),
        ({"projector_patch_to_query_dict": {"4900": 9}}, {}, {}, "counts 256 tokens .* makes 9"),
        ({"vision_feature_layer": [-1]}, {}, {}, r"\[-1\] is no layer"),
        ({"vision_feature_layer": -14}, {}, {}, "layer -14 of a tower of 12 layers"),
        ({}, {"min_image_size": 1000}, {}, "would be 1000 pixels high"),
        ({}, {}, {"size_conversion": {"980": 128}}, "counts 128 tokens"),
        ({"text_config": {"moe_topk": 9}}, {}, {}, "'moe_topk' is 9"),
    ],
)
def test_variants_that_are_refused(
    config: Json, images: Json, processor: Json, expected: str
) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config, images, processor)
