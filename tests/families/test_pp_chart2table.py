"""What is read from a PP-Chart2Table's JSON, against transformers' own classes."""

import json

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint
from vlmc.schema import Json

FAMILY = FAMILIES["pp-chart2table"]


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import PPChart2TableConfig, PPChart2TableImageProcessorPil

    whole = PPChart2TableConfig()
    images: Json = json.loads(PPChart2TableImageProcessorPil().to_json_string())
    found = FAMILY.facts(Checkpoint({}, {}, images, {}, {}))
    assert found.image_token_id == whole.image_token_id
    assert found.text.vocab == whole.text_config.vocab_size
    assert found.min_image_tokens == 256
    assert found.image_layout is not None
    assert found.image_layout.placeholder == "{image}" * 256
    left_out: Json = {"image_processor_type": images["image_processor_type"]}
    assert FAMILY.facts(Checkpoint({}, {}, left_out, {}, {})).images == found.images


def test_the_tower_of_another_model_is_refused() -> None:
    tower: Json = {"vision_config": {"model_type": "got_ocr2_vision"}}
    images: Json = {"image_processor_type": "PPChart2TableImageProcessor"}
    with pytest.raises(VlmcError, match="'got_ocr2_vision'"):
        FAMILY.facts(Checkpoint(tower, {}, images, {}, {}))
