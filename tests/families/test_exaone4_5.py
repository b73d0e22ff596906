"""What is read of an EXAONE 4.5 checkpoint beyond what Qwen2.5-VL's tests cover."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["exaone4.5"]


def facts(text: Json | None = None, **tower: object) -> ModelFacts:
    config: Json = {"vision_config": {"out_hidden_size": 4096, **tower}, "text_config": text}
    images: Json = {"image_processor_type": "Qwen2VLImageProcessorFast"}
    return FAMILY.facts(Checkpoint(config, {}, images, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Exaone4_5_Config

    made = Exaone4_5_Config()
    found = facts({"model_type": "exaone4_5_text"})
    assert found.image_token_id == made.image_token_id
    assert found.positions.scheme == "sequential"
    assert found.text.layers == made.text_config.num_hidden_layers
    assert found.text.vocab == made.text_config.vocab_size
    assert found.images.options["window"] == 8
    assert found.images.options["merge_size"] == made.vision_config.spatial_merge_size


def test_weights_are_counted_with_shared_keys() -> None:
    import torch
    from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration

    sizes: Json = {"depth": 3, "num_key_value_heads": 4, "out_hidden_size": 256}
    text: Json = {"model_type": "exaone4", "hidden_size": 256, "num_hidden_layers": 1}
    with torch.device("meta"):
        config = Exaone4_5_Config(vision_config=sizes, text_config=text)
        model = Exaone4_5_ForConditionalGeneration(config)
    found = facts(text, **sizes).weights
    assert found is not None
    real = sum(p.numel() for p in model.model.visual.parameters())
    assert found.vision == pytest.approx(real, rel=0.01)


def test_heads_share_keys_evenly() -> None:
    with pytest.raises(VlmcError, match="16 attention heads cannot share 5 key/value heads"):
        facts(num_key_value_heads=5)
