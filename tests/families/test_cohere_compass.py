"""What is read of a Cohere Compass checkpoint beyond what Qwen3-VL's tests cover."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["cohere-compass"]
IMAGES: Json = {"image_processor_type": "CohereCompassImageProcessorFast", "patch_size": 16}


def facts(images: Json = IMAGES, **tower: object) -> ModelFacts:
    config: Json = {"vision_config": {"out_hidden_size": 8192, **tower}}
    return FAMILY.facts(Checkpoint(config, {}, images, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import CohereCompassConfig

    made, found = CohereCompassConfig(), facts()
    assert found.image_token_id == made.image_token_id
    assert found.text.vocab == made.text_config.vocab_size
    assert found.text.kv_heads == made.text_config.num_key_value_heads
    assert found.positions.scheme == "mrope"
    assert found.deepstack == (1, 2, 3)


def test_another_image_processor_is_refused() -> None:
    with pytest.raises(VlmcError, match="CLIPImageProcessor"):
        facts({"image_processor_type": "CLIPImageProcessor"})
