"""What is read from a Kimi K2.5's JSON and tensors, against transformers' own model."""

from pathlib import Path

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.packed import halved
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.passes.checkpoint import read_rows
from vlmc.passes.checkpoint_index import read_index
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["kimi-k2.5"]
IMAGES: Json = {"image_processor_type": "Kimi_K25ImageProcessor"}
SIZES: Json = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def facts(**changes: object) -> ModelFacts:
    config: Json = {"text_config": {**SIZES, "model_type": "llama"}, **changes}
    return FAMILY.facts(Checkpoint(config, {}, IMAGES, {}, {}))


def test_a_saved_checkpoint_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.kimi import kimi_k25

    folder = kimi_k25(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_token_id == model.config.image_token_id
    assert FAMILY.decoder(model) is model.model.language_model
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.mm_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.05)
    assert FAMILY.tensors is not None
    index = FAMILY.tensors(read_index(folder), found)
    for layer, block in enumerate(model.model.vision_tower.layers):
        for one in ("q_proj.weight", "q_proj.bias", "k_proj.weight", "v_proj.bias"):
            ref = index[f"vision_tower.encoder.blocks.{layer}.attn.{one}"]
            wanted = block.attn.get_parameter(one).detach().numpy()
            assert np.array_equal(read_rows(ref, 0, 48), wanted)
            assert np.array_equal(read_rows(ref, 5, 31), wanted[5:31])
    with pytest.raises(VlmcError, match="48 rows, which 5 heads cannot share"):
        halved(ref, 5)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Kimi_K25Config

    whole = Kimi_K25Config()
    found = facts()
    assert found.image_token_id == whole.image_token_id
    assert found.images.options["patch_size"] == whole.vision_config.patch_size
    assert found.tower_heads == whole.vision_config.num_attention_heads
    assert found.images.options["max_patches"] == 16384


def test_the_first_name_of_the_decoder_is_known() -> None:
    latent = {"kv_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "vocab_size": 9}
    found = facts(text_config={**SIZES, **latent, "model_type": "kimi_k2"})
    assert (found.text.model_type, found.text.head_dim) == ("deepseek_v3", 24)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model'"),
        ({"vision_config": {"hidden_size": 64}}, "the tower's features have 64 numbers"),
        ({"vision_config": {"pos_emb_width": 32}}, "no square"),
        ({"vision_config": {"merge_kernel_size": [2, 3]}}, "no square of patches"),
        ({"vision_config": {"patch_size": 16}}, "the processor says 14, the vision tower 16"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(**changes)
