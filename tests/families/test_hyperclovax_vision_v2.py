"""What is read from a HyperCLOVA X SEED Think's JSON, against transformers' own model."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["hyperclovax-vision-v2"]


def test_a_saved_checkpoint_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.hyperclova import hyperclovax_vision_v2

    folder = hyperclovax_vision_v2(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_token_id == model.config.image_token_id
    assert found.positions.scheme == "sequential"
    assert FAMILY.decoder(model) is model.model.language_model
    assert found.weights is not None
    real = sum(parameter.numel() for parameter in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"model_type": "clip_vision_model"}}, "'clip_vision_model'"),
        ({"text_config": {"model_type": "llama"}}, "'llama'"),
    ],
)
def test_what_its_model_cannot_be_made_of_is_refused(changes: Json, expected: str) -> None:
    images: Json = {"image_processor_type": "Qwen2VLImageProcessor"}
    with pytest.raises(VlmcError, match=expected):
        FAMILY.facts(Checkpoint(changes, {}, images, {}, {}))
