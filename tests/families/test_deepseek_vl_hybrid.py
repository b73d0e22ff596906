"""What is read from a hybrid DeepSeek-VL's JSON, against transformers' own model."""

from pathlib import Path

import pytest

from tests.checkpoints.fixed import deepseek_vl_hybrid
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
FAMILY = FAMILIES["deepseek-vl-hybrid"]
SIZES: Json = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    folder = deepseek_vl_hybrid(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_tokens(10, 300) == found.min_image_tokens == 16
    given = torch.randn(1, 3, 28, 28), torch.randn(1, 3, 54, 54)
    with torch.no_grad():
        features = FAMILY.vision(model)(*given)
        expected = model.model.get_image_features(*given).pooler_output[0]
    torch.testing.assert_close(features, expected)
    assert FAMILY.decoder(model) is model.model.language_model


def test_the_published_model() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder = CONFIGS / "deepseek-vl-7b"
    found = FAMILY.facts(read_checkpoint(folder, tokenizer=False))
    assert (found.min_image_tokens, found.text.head_dim, found.image_token_id) == (576, 128, 100015)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    real = sum(p.numel() for p in model.parameters())
    assert found.weights is not None
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize(
    ("large", "text", "tokens", "expected"),
    [
        ({"model_type": "siglip_vision_model"}, {}, 16, "'siglip_vision_model'"),
        ({"image_size": 60}, {}, 16, "54 x 54 pixels, the vision tower takes 60 x 60"),
        ({"global_attn_indexes": []}, {}, 16, "no layer sees the whole picture"),
        ({"global_attn_indexes": [12]}, {}, 16, "names no layers of 12"),
        ({}, {"hidden_size": 33, "num_attention_heads": 3}, 16, "cannot be shared by two towers"),
        ({}, {}, 9, "counts 9 tokens for an image, the model makes 16"),
    ],
)
def test_variants_that_are_refused(large: Json, text: Json, tokens: int, expected: str) -> None:
    config: Json = {
        "model_type": "deepseek_vl_hybrid",
        "vision_config": {"image_size": 56, "patch_size": 14, **SIZES},
        "high_res_vision_config": {"image_size": 54, "patch_size": 6, **large},
        "text_config": {**SIZES, **text},
    }
    images: Json = {
        "image_processor_type": "DeepseekVLHybridImageProcessor",
        "size": 56,
        "high_res_size": {"height": 54, "width": 54},
    }
    with pytest.raises(VlmcError, match=expected):
        FAMILY.facts(Checkpoint(config, {"num_image_tokens": tokens}, images, {}, {}))
