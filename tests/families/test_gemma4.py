"""Gemma 4: whose keys its layers read, which heads they have, its masks, and what is refused."""

import pytest

from tests.checkpoints.pooled import gemma4
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.sources import read_checkpoint

SLIDING, FULL = "sliding_attention", "full_attention"
IMAGES = {"image_processor_type": "Gemma4ImageProcessor"}


def config(*, tower=None, **text):
    sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "head_dim": 16}
    return {
        "model_type": "gemma4",
        "text_config": {**sizes, "num_key_value_heads": 2, **text},
        "vision_config": tower or {"model_type": "gemma4_vision"},
    }


def facts(config, **images):
    read = Checkpoint(config, {}, {**IMAGES, **images}, {}, {})
    return by_model_type("gemma4").facts(read)


HEADS = [
    {},
    {"global_head_dim": 32},
    {"global_head_dim": 32, "num_global_key_value_heads": 1},
    {"global_head_dim": 24, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    {"per_layer_config": {"1": {"head_dim": 40}, "4": {"num_key_value_heads": 4}}},
    {"per_layer_config": None},
    {"layer_types": [SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING], "num_kv_shared_layers": 3},
    {"layer_types": [FULL] * 6, "num_kv_shared_layers": 5},
]


@pytest.mark.parametrize("text", HEADS, ids=str)
def test_layers_are_those_of_transformers(text):
    from transformers import Gemma4TextConfig

    given = config(**text)
    theirs = Gemma4TextConfig(**given["text_config"])
    found = facts(given)
    for layer, own in enumerate(theirs.per_layer_config):
        assert found.heads_of(layer) == (own.num_key_value_heads, own.head_dim)
    kinds, modes = theirs.layer_types, theirs.kv_sharing_modes
    stored = {kind: at for at, (kind, mode) in enumerate(zip(kinds, modes, strict=True)) if mode}
    stored |= {kind: at for at, kind in enumerate(kinds) if modes[at] == "store"}
    read = {at: stored[kinds[at]] for at, mode in enumerate(modes) if mode == "reuse"}
    assert found.owners == read
    assert [at for kind, at in found.memory() if kind == "key"] == [
        at for at in range(6) if at not in read
    ]


def test_pictures_are_seen_both_ways_where_the_decoder_says_so():
    assert facts(config()).masks == ()
    full, sliding = facts(config(use_bidirectional_attention="vision", sliding_window=7)).masks
    assert (full.layers, full.spans, full.input) == (FULL, None, None)
    assert (sliding.layers, sliding.spans, sliding.window) == (SLIDING, "images", 7)
    assert sliding.window_in_spans
    (only,) = facts(config(use_bidirectional_attention="vision", layer_types=[FULL] * 6)).masks
    assert only.layers == FULL


@pytest.mark.parametrize(
    ("given", "images", "message"),
    [
        (config() | {"vision_config": None}, {}, "no vision tower"),
        (config(use_bidirectional_attention="all"), {}, "attend both ways"),
        (config(num_kv_shared_layers=6), {}, "no layer of their kind has"),
        (config(layer_types=[FULL] * 5), {}, "5 kinds for 6 layers"),
        (config(layer_types=["chunked_attention"] * 6), {}, "'chunked_attention'"),
        (config(per_layer_config={"9": {}}), {}, "'9' is no layer of 6"),
        (config(per_layer_config={"1": {"num_key_value_heads": 3}}), {}, "cannot share 3"),
        (config(tower={"patch_size": 14}), {}, "the processor says 16, the vision tower 14"),
        (config(tower={"pooling_kernel_size": 2}), {}, "the processor says 3, the vision tower 2"),
        (config(), {"max_soft_tokens": 100}, "100 is no budget"),
    ],
)
def test_what_cannot_work_is_refused(given, images, message):
    with pytest.raises(VlmcError, match=message):
        facts(given, **images)


@pytest.mark.parametrize("experts", [False, True])
def test_weights_are_counted(tmp_path, experts):
    from transformers import Gemma4ForConditionalGeneration

    mixed = {"num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24}
    folder = gemma4(tmp_path, **({"enable_moe_block": True, **mixed} if experts else {}))
    counted = by_model_type("gemma4").facts(read_checkpoint(folder, tokenizer=False)).weights
    model = Gemma4ForConditionalGeneration.from_pretrained(folder)
    decoder = model.model.language_model
    tables = decoder.embed_tokens.weight.numel() + decoder.embed_tokens_per_layer.weight.numel()
    real = sum(p.numel() for p in decoder.parameters())
    assert counted.embedding == tables
    assert counted.language == pytest.approx(real - tables, rel=0.07)
    assert counted.head == 0
    rest = sum(p.numel() for p in model.model.vision_tower.parameters())
    assert counted.vision == pytest.approx(
        rest + model.model.embed_vision.embedding_projection.weight.numel(), rel=0.02
    )


def test_the_smallest_picture_takes_half_of_the_budget():
    found = facts(config(), max_soft_tokens=70)
    shapes = [(h, w) for h in range(1, 400, 7) for w in range(1, 400, 7)]
    counted = {found.image_tokens(height, width) for height, width in shapes}
    assert found.min_image_tokens == 35 + 2 <= min(counted)
    assert max(counted) == 70 + 2
