"""PaddleOCR-VL: counts, and the tower that its configuration describes."""

import pytest

from tests.checkpoints.native import paddleocr_vl
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.sources import read_checkpoint

IMAGES = {"image_processor_type": "PaddleOCRVLImageProcessor"}


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted(tmp_path, tied):
    from transformers import PaddleOCRVLForConditionalGeneration

    folder = paddleocr_vl(tmp_path, tied=tied)
    found = by_model_type("paddleocr_vl").facts(read_checkpoint(folder, tokenizer=False))
    model = PaddleOCRVLForConditionalGeneration.from_pretrained(folder)
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.05)
    assert bool(found.weights.head) is not tied
    assert found.multiples == {"patches": 4}


@pytest.mark.parametrize(
    ("tower", "images", "expected"),
    [
        ({"patch_size": 400}, {}, "a patch of 400 pixels in an image of 384"),
        ({"patch_size": 16}, {}, "patch_size is 16, the image processor's patch_size is 14"),
        ({}, {"temporal_patch_size": 2}, "temporal_patch_size is 1, the image processor's"),
    ],
)
def test_variants_that_are_refused(tower, images, expected):
    config = {"model_type": "paddleocr_vl", "vision_config": tower}
    given = Checkpoint(config, {}, {**IMAGES, **images}, {}, {})
    with pytest.raises(VlmcError, match=expected):
        by_model_type("paddleocr_vl").facts(given)
