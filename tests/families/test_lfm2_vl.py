"""LFM2-VL: which layers have states, marks of its pictures, and what is refused."""

import json

import pytest

from tests.checkpoints.native import lfm2_vl
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint, StateFacts
from vlmc.sources import read_checkpoint

IMAGES = {"image_processor_type": "Lfm2VlImageProcessor"}


def config(**text):
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return {"model_type": "lfm2_vl", "text_config": {**sizes, **text}, "vision_config": {}}


def facts(config, images=IMAGES, tokenizer=None):
    return by_model_type("lfm2_vl").facts(Checkpoint(config, {}, images, {}, tokenizer or {}))


def test_layers_that_do_not_attend_have_states():
    kinds = ["conv", "full_attention", "conv"]
    states = (StateFacts(0, (64, 2)), StateFacts(2, (64, 2)))
    found = facts(config(layer_types=kinds))
    assert found.states == facts(config(full_attn_idxs=[1])).states == states
    assert found.memory() == (("state", 0), ("key", 1), ("value", 1), ("state", 2))
    assert facts(config()).states == ()
    assert facts(config(conv_L_cache=5, full_attn_idxs=[0, 1])).states == (StateFacts(2, (64, 4)),)


def test_marks_are_the_tokenizers():
    layout = facts(config()).image_layout
    assert (layout.start, layout.end) == ("<|image_start|>", "<|image_end|>")
    assert layout.before_whole == "<|img_thumbnail|>"
    named = {"extra_special_tokens": {"image_start_token": "<a>"}, "image_end_token": "<b>"}
    layout = facts(config(), {**IMAGES, "use_thumbnail": False}, named).image_layout
    assert (layout.start, layout.end, layout.before_whole) == ("<a>", "<b>", "")


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted(tmp_path, tied):
    from transformers import Lfm2VlForConditionalGeneration

    folder = lfm2_vl(tmp_path, tied=tied)
    read = read_checkpoint(folder, tokenizer=False)
    counted = by_model_type("lfm2_vl").facts(read).weights
    model = Lfm2VlForConditionalGeneration.from_pretrained(folder)
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(counted).values()) == pytest.approx(real, rel=0.05)
    assert bool(counted.head) is not tied
    assert json.loads((folder / "config.json").read_text())["model_type"] == "lfm2_vl"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config(layer_types=["conv"]), "does not name the kind of 3 layers"),
        (config(layer_types=["conv", "mamba", "conv"]), "a layer is of the kind 'mamba'"),
        (config(full_attn_idxs=2), "2 is not a list of layers"),
        (config() | {"vision_config": {"num_patches": 24}}, "24 positions do not make a square"),
        (config() | {"vision_config": {"patch_size": 14}}, "encoder_patch_size is 16"),
    ],
)
def test_variants_that_are_refused(given, expected):
    with pytest.raises(VlmcError, match=expected):
        facts(given)
