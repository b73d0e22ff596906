"""Qwen3-VL: learned positions, deep-stack features, and what is refused."""

import json

import pytest

from tests.checkpoints.native import qwen3_vl
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.runtime.images.patches import positions
from vlmc.runtime.images.position_table import PositionTable, table_rows
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["qwen3-vl"]
IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}


@pytest.mark.parametrize("deepstack", [(0, 2), (2, 0), (), (7,)])
def test_features_are_those_of_transformers(tmp_path, deepstack):
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    folder = qwen3_vl(tmp_path, deepstack=deepstack)
    facts = FAMILY.facts(read_checkpoint(folder, tokenizer=False))
    kept = [layer for layer in deepstack if layer < 3]
    assert facts.deepstack == tuple(range(1, len(kept) + 1))
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    vision = FAMILY.vision(model)
    for rows, columns in [(8, 8), (2, 10), (14, 2)]:
        patches = torch.randn(rows * columns, 3 * 2 * 7 * 7)
        places = positions(rows, columns, 2)
        mixed = table_rows(places, rows, columns, PositionTable(side=5, taps=2, centers="corners"))
        with torch.no_grad():
            wanted = model.model.visual(patches, grid_thw=torch.tensor([[1, rows, columns]]))
            found = vision(patches, *map(torch.from_numpy, (places, *mixed)))
        features, *deep = found if kept else (found,)
        torch.testing.assert_close(features, wanted.pooler_output)
        for rows_of in deep:
            torch.testing.assert_close(rows_of, torch.stack(wanted.deepstack_features, dim=1))
        assert len(deep) == bool(kept)
    assert FAMILY.decoder(model) is model.model.language_model
    assert facts.weights is not None
    tower = sum(p.numel() for p in model.model.visual.parameters())
    if kept == list(deepstack):
        assert facts.weights.vision == pytest.approx(tower, rel=0.05)


def test_no_more_deepstack_features_than_layers_are_read():
    config = json.loads(qwen3_config())
    config["vision_config"]["deepstack_visual_indexes"] = [1, 2, 3, 4, 5]
    assert by_model_type("qwen3_vl").facts(checkpoint(config)).deepstack == (1, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_position_embeddings": 24}, "24 positions do not make a square"),
        ({"deepstack_visual_indexes": 3}, "3 is not a list of layers"),
        ({"deepstack_visual_indexes": [1, "2"]}, "is not a list of layers"),
        ({"patch_size": 14}, "patch_size is 14, the image processor's patch_size is 16"),
        ({"out_hidden_size": 32}, "features have 32 numbers, the decoder's 64"),
    ],
)
def test_variants_that_are_refused(changes, expected):
    config = json.loads(qwen3_config())
    config["vision_config"] |= changes
    with pytest.raises(VlmcError, match=expected):
        by_model_type("qwen3_vl").facts(checkpoint(config))


def qwen3_config() -> str:
    return json.dumps(
        {
            "model_type": "qwen3_vl",
            "text_config": {"hidden_size": 64, "num_hidden_layers": 2},
            "vision_config": {"out_hidden_size": 64},
        }
    )


def checkpoint(config):
    return Checkpoint(config, {}, IMAGES, {}, {})
