"""Perception LM: what is read of its tower, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.families import by_config
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

SMALL: Json = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
COUNTS: Json = {"patch_size": 14, "pooling_ratio": 2}


def tower(name: str = "vit_pe_core_large_patch14_336", **args: Any) -> Json:
    given = {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": [56, 56], **args}
    return {"architecture": name, "model_args": given}


def facts(
    changes: Json | None = None,
    processor: Json | None = None,
    images: Json | None = None,
    **bounds: int,
) -> ModelFacts:
    given = {"image_processor_type": "PerceptionLMImageProcessor", "tile_size": 56}
    config: Json = {
        "model_type": "perception_lm",
        "text_config": SMALL,
        "vision_config": tower(),
        "projector_pooling_ratio": 2,
        **(changes or {}),
    }
    read = Checkpoint(config, processor or COUNTS, given | (images or {}), {}, {}, bounds)
    return by_config(config).facts(read)


def test_tokens_are_those_of_the_whole_and_its_tiles() -> None:
    found = facts()
    assert found.min_image_tokens == 2 * 4
    assert found.image_tokens(56, 112) == (8 * 4 + 1) * 4  # enlarged to the largest grid
    assert facts(images={"vision_input_type": "vanilla"}).min_image_tokens == 4
    assert facts(max_tiles=1).image_tokens(560, 560) == 2 * 4
    flat = {"projector_pooling_ratio": 1}
    assert facts(flat, COUNTS | {"pooling_ratio": 1}).min_image_tokens == 2 * 16
    assert (found.image_token_id, facts({"image_token_id": 7}).image_token_id) == (128002, 7)


def test_towers_without_a_class_token() -> None:
    giant = tower("vit_pe_lang_gigantic_patch14_448.fb_tiling")
    left = {"vision_use_cls_token": False}
    assert facts({"vision_config": giant, **left}).min_image_tokens == 2 * 4
    with pytest.raises(VlmcError, match="no class token, and the model leaves out"):
        facts({"vision_config": giant})
    with pytest.raises(VlmcError, match="a class token, and the model keeps"):
        facts(left)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.timm_towers import perception_lm
    from vlmc.families.timm_modules import make_tower
    from vlmc.passes.timm_towers import own_towers

    folder = perception_lm(tmp_path, tie_word_embeddings=tied)
    read = read_checkpoint(folder, tokenizer=False)
    counted = by_config(read.config).facts(read).weights
    with own_towers(make_tower):
        real = AutoModelForImageTextToText.from_pretrained(folder).num_parameters()
    assert counted is not None
    assert sum(vars(counted).values()) == pytest.approx(real, rel=0.03)
    assert bool(counted.head) is not tied


@pytest.mark.parametrize("name", ["fastvit_mci3", "vit_pe_core_large_patch14_335", "resnet50"])
def test_other_towers_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(VlmcError, match="allowed: vit_pe_core_tiny_patch16_384, "):
        facts({"vision_config": tower(name)})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"model_args": {"embed_dim": 8}}}, "unknown vision tower 'resnet50'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "timm_wrapper"),
        ({"vision_config": tower(embed_dim=None)}, "'embed_dim' is missing"),
        ({"vision_config": tower(num_heads=5)}, "64 numbers do not make 5 heads"),
        ({"vision_config": tower(num_heads=32)}, "32 heads of fours"),
        ({"vision_config": tower(patch_size=60)}, "a patch of 60 pixels"),
        ({"vision_config": tower(img_size=[1, 2, 3])}, "not a height and a width"),
        ({"vision_config": tower(img_size=[56, 70])}, "cannot be averaged by 2"),
        ({"vision_config": tower(global_pool="mean")}, "tokens pooled by 'mean'"),
        ({"vision_config": tower(init_values=0)}, "not a number above 0"),
        ({"vision_config": tower(class_token=1)}, "neither true nor false"),
        ({"vision_config": tower(rope_grid_offset="1")}, "'rope_grid_offset' is '1'"),
        ({"vision_config": tower(swiglu_mlp=True)}, "'swiglu_mlp' of this tower"),
        ({"projector_pooling_ratio": 5}, "4 x 4 patches cannot be averaged by 5"),
        ({"projector_pooling_ratio": 1}, "a tile has 16 features, and the processor counts 4"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(changes)


def test_processors_that_are_refused() -> None:
    with pytest.raises(VlmcError, match="'patch_size' is missing"):
        facts(processor={"pooling_ratio": 2})
    with pytest.raises(VlmcError, match="features, and the processor counts 1"):
        facts(processor=COUNTS | {"patch_size": 28})
    with pytest.raises(VlmcError, match="448 x 448 pixels"):
        facts(images={"tile_size": None})
