"""Qwen3.5: which layers have states, how large they are, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoints.delta import KINDS, qwen3_5
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts, StateFacts
from vlmc.runtime.images.patches import positions
from vlmc.runtime.images.position_table import PositionTable, table_rows
from vlmc.sources import read_checkpoint

IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}


def facts(**text: Any) -> ModelFacts:
    config = {
        "model_type": "qwen3_5",
        "text_config": {**SIZES, **text},
        "vision_config": {"out_hidden_size": 64},
    }
    return by_model_type("qwen3_5").facts(Checkpoint(config, {}, IMAGES, {}, {}))


def states(*layers: int, kept: int = 3) -> tuple[StateFacts, ...]:
    """Of the convolution over queries, keys and values, and of the rule."""
    channels = 2 * 2 * 8 + 6 * 12
    kinds = (((channels, kept), "state"), ((6, 8, 12), "matrix"))
    return tuple(StateFacts(n, shape, kind) for n in layers for shape, kind in kinds)


def test_a_net_has_two_states_and_attention_has_none():
    assert facts().states == facts(full_attention_interval=4).states == states(0, 1, 2, 4)
    assert facts(full_attention_interval=2).states == states(0, 2, 4)
    kinds = ["full_attention", *["linear_attention"] * 2, *["full_attention"] * 2]
    found = facts(layer_types=kinds)
    assert found.states == states(1, 2)
    assert found.memory()[:4] == (("key", 0), ("value", 0), ("state", 1), ("matrix", 1))
    assert facts(linear_conv_kernel_dim=2).states == states(0, 1, 2, 4, kept=1)
    assert found.image_token_id == 248056
    assert found.deepstack == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_types": ["conv"] * 5}, "a layer is of the kind 'conv'"),
        ({"layer_types": ["full_attention"]}, "does not name the kind of 5 layers"),
        ({"layer_types": "full_attention"}, "does not name the kind of 5 layers"),
        ({"num_hidden_layers": 3}, "no layer attends"),
        ({"linear_num_value_heads": 3}, "3 value heads cannot share 2 key heads"),
        ({"linear_key_head_dim": 0}, "'linear_key_head_dim' is 0"),
    ],
)
def test_variants_that_are_refused(changes, expected):
    with pytest.raises(VlmcError, match=expected) as caught:
        facts(**changes)
    assert "config.json: text_config" in str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_and_features_are_those_of_transformers(tmp_path, tied):
    import torch
    from transformers import Qwen3_5ForConditionalGeneration

    folder, family = qwen3_5(tmp_path, tied=tied), by_model_type("qwen3_5")
    found = family.facts(read_checkpoint(folder, tokenizer=False))
    assert [s.layer for s in found.states[::2]] == [
        at for at, kind in enumerate(KINDS) if kind == "linear_attention"
    ]
    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder).eval()
    assert found.weights is not None
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.05)
    assert bool(found.weights.head) is not tied
    rows, columns = 2, 10
    patches = torch.randn(rows * columns, 3 * 2 * 7 * 7)
    places = positions(rows, columns, 2)
    mixed = table_rows(places, rows, columns, PositionTable(side=5, taps=2, centers="corners"))
    with torch.no_grad():
        wanted = model.model.visual(patches, grid_thw=torch.tensor([[1, rows, columns]]))
        features = family.vision(model)(patches, *map(torch.from_numpy, (places, *mixed)))
    torch.testing.assert_close(features, wanted.pooler_output)


def test_experts_are_counted(tmp_path):
    from transformers import Qwen3_5MoeForConditionalGeneration

    folder, family = qwen3_5(tmp_path, experts=5), by_model_type("qwen3_5_moe")
    read = read_checkpoint(folder, tokenizer=False)
    found = family.facts(read)
    decoder = Qwen3_5MoeForConditionalGeneration.from_pretrained(folder).model.language_model
    real = sum(p.numel() for p in decoder.parameters()) - decoder.embed_tokens.weight.numel()
    assert found.weights is not None
    assert found.weights.language == pytest.approx(real, rel=0.05)
    read.config["text_config"]["intermediate_size"] = 4096  # that no layer has
    assert family.facts(read).weights == found.weights
