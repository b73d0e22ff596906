"""Qwen3-VL with experts: counts, matrices stored either way round, what is refused."""

from dataclasses import replace

import pytest

from tests.checkpoints.native import qwen3_vl
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["qwen3-vl-moe"]


def test_weights_are_counted(tmp_path):
    from transformers import Qwen3VLMoeForConditionalGeneration

    folder = qwen3_vl(tmp_path, experts=5)
    counted = FAMILY.facts(read_checkpoint(folder, tokenizer=False)).weights
    assert counted is not None
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder)
    decoder = model.model.language_model
    real = sum(p.numel() for p in decoder.parameters()) - decoder.embed_tokens.weight.numel()
    assert counted.language == pytest.approx(real, rel=0.05)


def test_matrices_of_experts_are_read_as_they_are_stored(tmp_path):
    from vlmc.passes.checkpoint_index import read_index
    from vlmc.passes.experts import prepare_experts
    from vlmc.passes.parameters import match_names
    from vlmc.passes.transform import build_module

    folder = qwen3_vl(tmp_path, experts=5)
    index = dict(read_index(folder))
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    stored = {}
    for _ in range(2):
        model = build_module(folder, "eager")
        matched = match_names(model, index)
        shape = index[matched[name]].shape
        prepare_experts(model, index, matched)
        experts = model.get_submodule(name.rpartition(".")[0])
        assert tuple(experts.gate_up_proj.shape) == shape
        stored[experts.stored_transposed] = shape
        for key, ref in index.items():
            if ".experts." in key:
                index[key] = replace(ref, shape=(ref.shape[0], *ref.shape[:0:-1]))
    assert sorted(stored.values()) == [(5, 48, 64), (5, 64, 48)]


def test_layers_without_experts_are_a_list():
    config = {
        "model_type": "qwen3_vl_moe",
        "text_config": {"hidden_size": 64, "num_attention_heads": 16, "mlp_only_layers": 3},
        "vision_config": {"out_hidden_size": 64},
    }
    images = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}
    with pytest.raises(VlmcError, match="3 is not a list of layers"):
        by_model_type("qwen3_vl_moe").facts(Checkpoint(config, {}, images, {}, {}))
