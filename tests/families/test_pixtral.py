"""Pixtral and Mistral 3: which family serves what, counts of tokens, and what is refused."""

import json

import pytest

from tests.checkpoints.native import pixtral
from tests.checkpoints.parts import PATCH
from vlmc.errors import VlmcError
from vlmc.families import by_config
from vlmc.families.spec import Checkpoint
from vlmc.sources import read_checkpoint

IMAGES = {"image_processor_type": "PixtralImageProcessor"}


def facts(config, processor, images=IMAGES):
    return by_config(config).facts(Checkpoint(config, processor, images, {}, {}))


def config(kind, **changes):
    tower = {"model_type": "pixtral", "patch_size": PATCH, "num_hidden_layers": 3}
    text = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4}
    text |= {"head_dim": 16, "num_key_value_heads": 2}
    found = {"model_type": kind, "vision_config": tower, "text_config": text}
    return found | {"vision_feature_select_strategy": "full"} | changes


@pytest.mark.parametrize("merge", [1, 2])
def test_prompts_are_as_long_as_transformers(tmp_path, merge):
    from tests.build.oracle import make_processor
    from tests.build.questions import picture

    folder = pixtral(tmp_path, merge=merge)
    found = by_config(json.loads((folder / "config.json").read_text())).facts(
        read_checkpoint(folder, tokenizer=False)
    )
    processor = make_processor(folder)
    for width, height in [(30, 90), (200, 20), (84, 84), (5, 4), (85, 83)]:
        ids = processor(text=["[IMG]"], images=[picture(width, height)])["input_ids"][0]
        assert found.image_tokens(height, width) == len(ids) - 1  # the tokenizer adds <s>
    layout = found.image_layout
    assert layout is not None
    assert (layout.row_end, layout.end) == ("[IMG_BREAK]", "[IMG_END]")
    assert found.weights is not None


def test_the_tower_decides_between_families_of_one_model_type():
    assert by_config(config("llava")).name == "pixtral"
    assert by_config(config("llava", vision_config={})).name == "llava"
    assert by_config(config("mistral3")).name == "mistral3"
    with pytest.raises(VlmcError, match="unknown model type 'lava'"):
        by_config(config("lava"))


def test_mistral3_without_sizes_is_as_its_class_makes_it():
    from transformers import Mistral3Config

    theirs = Mistral3Config()
    given = {"model_type": "mistral3"}
    found = facts(given, {"patch_size": 14, "spatial_merge_size": 2})
    text = theirs.text_config
    assert (found.text.layers, found.text.hidden) == (text.num_hidden_layers, text.hidden_size)
    assert (found.text.vocab, found.text.head_dim) == (text.vocab_size, text.head_dim)
    assert found.image_token_id == theirs.image_token_index
    assert found.images.options["patch_size"] == theirs.vision_config.patch_size
    assert found.multiples == {"patches": 4}


@pytest.mark.parametrize(
    ("given", "processor", "expected"),
    [
        (config("llava"), {}, "processor's patch_size is 16, the model's 7"),
        (config("mistral3"), {"patch_size": 7}, "spatial_merge_size is 1, the model's 2"),
        (
            config("llava", vision_feature_select_strategy="default"),
            {"patch_size": 7},
            "'default'",
        ),
        (
            config("mistral3", vision_feature_layer=[-1, -2]),
            {"patch_size": 7, "spatial_merge_size": 2},
            "features of one layer",
        ),
        (config("llava", vision_feature_layer=4), {"patch_size": 7}, "layer 4 of a tower of 3"),
        (config("llava"), {"patch_size": 7, "image_break_token": ""}, "'' is no token"),
    ],
)
def test_variants_that_are_refused(given, processor, expected):
    with pytest.raises(VlmcError, match=expected):
        facts(given, processor)
