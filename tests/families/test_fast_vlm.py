"""FastVLM: what is read of its tower, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.families import by_config
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.passes.timm_towers import own_towers
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

IMAGES: Json = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 256, "width": 320},
}
SMALL: Json = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def facts(processor: Json | None = None, **changes: Any) -> ModelFacts:
    config: Json = {"model_type": "fast_vlm", "text_config": SMALL, **changes}
    return by_config(config).facts(Checkpoint(config, processor or {}, IMAGES, {}, {}))


def tower(hidden: int = 3072, name: str = "fastvit_mci3", **args: Any) -> Json:
    return {"architecture": name, "hidden_size": hidden, "model_args": args}


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import torch
    from transformers import AutoModelForImageTextToText, FastVlmConfig

    from vlmc.families.timm_modules import make_tower

    found = facts(text_config=None)
    whole = FastVlmConfig()
    assert found.image_token_id == whole.image_token_id
    assert found.text.hidden == whole.text_config.hidden_size
    assert found.min_image_tokens == 4 * 5
    with own_towers(make_tower), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(whole)
    real = sum(p.numel() for p in model.parameters())
    assert found.weights is not None
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.005)


def test_a_tower_is_named_with_or_without_the_tag_of_its_weights() -> None:
    wide = tower(1024, "fastvit_mci1", inference_mode=True)
    tagged = {**wide, "architecture": "fastvit_mci1.apple_mclip", "model_type": "timm_wrapper"}
    assert facts(vision_config=wide).weights == facts(vision_config=tagged).weights
    assert facts(vision_config=wide).min_image_tokens == 8 * 10
    free = tower(64, layers=[1, 1], embed_dims=[8, 32], proj_drop_rate=0.5, cls_ratio=None)
    assert facts(vision_config=free).min_image_tokens == 32 * 40


def test_the_processor_counts_what_the_tower_gives() -> None:
    said = {"patch_size": 64, "vision_feature_select_strategy": "full"}
    assert facts(said).min_image_tokens == 20
    more = {**said, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    assert facts(more).min_image_tokens == 20
    with pytest.raises(VlmcError, match=r"320 x 256 pixels has 20 features.* counts 19"):
        facts(said | {"vision_feature_select_strategy": "default"})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"hidden_size": 8}}, "unknown vision tower 'resnet50'"),
        ({"vision_config": tower(name="fastvit_mci5")}, "did you mean 'fastvit_mci"),
        ({"vision_config": tower(name="vit_pe_core_large_patch14_336")}, "allowed: fastvit_t8, "),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "timm_wrapper"),
        ({"vision_config": tower(768)}, "reads 768 numbers, the tower gives 3072"),
        ({"vision_config": tower(act_layer="relu")}, "'act_layer' of this tower"),
        ({"vision_config": tower(features_only=True)}, "'features_only' of this tower"),
        ({"vision_config": tower(layers=3)}, "'layers' is 3, not a list"),
        ({"vision_config": tower(layers=[1, 0])}, "not a list of whole numbers"),
        ({"vision_config": tower(layers=[1] * 6)}, "no entry for each of 6 stages"),
        ({"vision_config": tower(layers=[1] * 4)}, "5 widths of 4 stages"),
        ({"vision_config": tower(embed_dims=[8, 12, 32, 32, 32])}, "8 channels cannot become 12"),
        ({"vision_config": tower(embed_dims=[8, 8, 8, 8, 8])}, "do not make heads of 32"),
        ({"vision_config": tower(token_mixers=["pool"] * 5)}, "tokens mixed by 'pool'"),
        ({"vision_config": tower(downsamples=[1] * 5)}, "'downsamples' holds more"),
        ({"vision_config": tower(mlp_ratios=[-1] * 5)}, "not a number above 0"),
        ({"vision_config": tower(mlp_ratios=["x"] * 5)}, "'mlp_ratios' is 'x'"),
        ({"vision_config": tower(pos_embs=["cpe"] * 5)}, "a file can hold nulls alone"),
        ({"vision_config": tower(down_patch_size=4)}, "'down_patch_size' is 4"),
        ({"vision_config": tower(inference_mode=1)}, "neither true nor false"),
        ({"vision_config": tower(in_chans=1)}, "the tower takes 1"),
        ({"vision_feature_layer": -2}, "the last, -1, is read"),
        ({"vision_feature_select_strategy": "default"}, "'default'"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(**changes)


def test_matrices_and_convolutions_of_one_pixel_answer_alike(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.timm_towers import fast_vlm
    from vlmc.families.fastvit import matrices_of
    from vlmc.families.timm_modules import make_tower, stored_tower
    from vlmc.passes.checkpoint_index import read_index

    folder = fast_vlm(tmp_path)
    with own_towers(stored_tower):
        stored = AutoModelForImageTextToText.from_pretrained(folder)
    with own_towers(make_tower):
        made = AutoModelForImageTextToText.from_config(stored.config).eval()
    shapes = {name: ref.shape for name, ref in matrices_of(read_index(folder)).items()}
    values = {name: value.reshape(shapes[name]) for name, value in stored.state_dict().items()}
    assert values.keys() == made.state_dict().keys()
    made.load_state_dict(values)
    assert sum(len(shape) == 4 for shape in shapes.values()) < sum(
        value.dim() == 4 for value in stored.state_dict().values()
    )
    pixels = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = stored.get_image_features(pixels).pooler_output
        found = made.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_saved_checkpoint_is_read(tmp_path: Path) -> None:
    from tests.checkpoints.timm_towers import fast_vlm

    read = read_checkpoint(fast_vlm(tmp_path), tokenizer=False)
    found = by_config(read.config).facts(read)
    assert (found.min_image_tokens, found.image_tokens(40, 90)) == (6, 6)
    assert found.vision_inputs[0].shape == (1, 3, 128, 192)
