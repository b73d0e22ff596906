"""Gemma 3n: whose keys its layers read, the sizes of its tower, its weights, what is refused."""

from copy import deepcopy

import pytest

from tests.checkpoints.streams import blocks, gemma3n
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.mobilenet_v5 import network
from vlmc.families.spec import Checkpoint
from vlmc.passes.timm_towers import own_towers
from vlmc.sources import read_checkpoint

SLIDING, FULL = "sliding_attention", "full_attention"
IMAGES = {"image_processor_type": "SiglipImageProcessor"}


def config(*, tower=None, outer=None, **text):
    sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "head_dim": 16}
    shared = {"num_kv_shared_layers": 1, **text}
    return {
        "model_type": "gemma3n",
        "text_config": {**sizes, **shared},
        "vision_config": {"model_type": "gemma3n_vision", **(tower or {})},
        **(outer or {}),
    }


def facts(config, **processor):
    return by_model_type("gemma3n").facts(Checkpoint(config, processor, IMAGES, {}, {}))


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"num_kv_shared_layers": 0},
        {
            "layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING],
            "num_kv_shared_layers": 3,
        },
        {"layer_types": [FULL] * 6, "num_kv_shared_layers": 5},
    ],
    ids=str,
)
def test_keys_are_shared_as_in_transformers(text):
    from transformers import Gemma3nTextConfig

    given = config(**text)
    theirs = Gemma3nTextConfig(**given["text_config"])
    kinds, modes = theirs.layer_types, theirs.kv_sharing_modes
    stored = {kind: at for at, kind in enumerate(kinds) if modes[at] == "store"}
    read = {at: stored[kinds[at]] for at, mode in enumerate(modes) if mode == "reuse"}
    assert facts(given).owners == read


def listed(change):
    stages = deepcopy(blocks())
    change(stages)
    return {"model_args": {"block_args": stages}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config(num_kv_shared_layers=6), "no layer of their kind has"),
        (config(layer_types=[FULL] * 5), "5 kinds for 6 layers"),
        (config(layer_types=["chunked_attention"] * 6), "'chunked_attention'"),
        (config(tower={"architecture": "mobilenetv5_300"}), "unknown tower"),
        (config(tower={"architecture": 5}), "5 is no tower"),
        (config(tower={"hidden_size": 64}), "features of 64, but the tower makes 2048"),
        (config(outer={"vision_soft_tokens_per_image": 16}), "16 tokens .* makes 256"),
        (config(tower={"model_args": {"norm_layer": "batchnorm"}}), "'norm_layer'"),
        (config(tower={"model_args": {"in_chans": 1}}), "'in_chans' is 1"),
        (config(tower={"model_args": {"pad_type": "valid"}}), "padding 'valid'"),
        (config(tower={"model_args": {"msfa_indices": [7]}}), "no stages of 5"),
        (config(tower={"model_args": {"msfa_output_resolution": [1]}}), "no two sides"),
        (config(tower={"model_args": {"channel_multiplier": 0}}), "not a number above 0"),
        (config(tower={"model_args": {"stem_size": "8"}}), "not a whole number"),
        (config(tower={"model_args": {"block_args": [[]]}}), "no list of stages"),
        (config(tower=listed(lambda s: s[1][0].update(stride=1))), "a stride of 2"),
        (config(tower=listed(lambda s: s.append(s[0]))), "four at most"),
        (config(tower=listed(lambda s: s[0][0].update(block_type="ir"))), "a block is 'ir'"),
        (config(tower=listed(lambda s: s[0][0].update(se_ratio=0.25))), "'se_ratio'"),
        (config(tower=listed(lambda s: s[0][0].update(kv_stride=2))), "'kv_stride'"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    with pytest.raises(VlmcError, match=message):
        facts(given)


def test_the_processor_must_count_as_the_model_does():
    with pytest.raises(VlmcError, match="the processor counts 9 tokens"):
        facts(config(), image_seq_length=9)


def test_weights_are_counted(tmp_path):
    from transformers import Gemma3nForConditionalGeneration

    family = by_model_type("gemma3n")
    folder = gemma3n(tmp_path)
    counted = family.facts(read_checkpoint(folder, tokenizer=False)).weights
    with own_towers(family.timm_tower):
        model = Gemma3nForConditionalGeneration.from_pretrained(folder)
    decoder = model.model.language_model
    tables = decoder.embed_tokens.weight.numel() + decoder.embed_tokens_per_layer.weight.numel()
    real = sum(p.numel() for p in decoder.parameters())
    assert counted.embedding == pytest.approx(tables, rel=0.02)
    assert counted.language == pytest.approx(real - tables, rel=0.07)
    assert counted.head == 0
    rest = sum(p.numel() for p in model.model.vision_tower.parameters())
    assert counted.vision == pytest.approx(
        rest + model.model.embed_vision.embedding_projection.weight.numel(), rel=0.03
    )


def test_a_published_tower_has_the_sizes_it_is_known_for():
    made = network("mobilenetv5_300m_enc", {})
    assert [len(stage) for stage in made.stages] == [3, 5, 37, 39]
    assert made.channels == (64, 128, 256, 640, 1280)
    assert (made.taken, made.side, made.features) == ((3, 4), (16, 16), 2048)


@pytest.mark.parametrize("side", [(64, 64), (50, 34), (768, 768)])
def test_a_tower_makes_as_many_rows_of_any_picture(side):
    import torch

    from vlmc.families.mobilenet_v5_modules import MobileNetV5

    args = {"block_args": blocks(), "stem_size": 8}
    made = MobileNetV5(network("mobilenetv5_300m_enc", args))
    with torch.device("meta"):
        found = made.to("meta").forward_features(torch.empty(1, 3, *side))
    assert found.shape == (1, 2048, 16, 16)
