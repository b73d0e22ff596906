"""What is read from a Command A Vision checkpoint's JSON, against transformers' own processor."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["cohere2-vision"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER: Json = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, **SIZES}
IMAGES: Json = {
    "image_processor_type": "Cohere2VisionImageProcessorFast",
    "size": {"height": 56, "width": 56},
    "patch_size": 2,
}


def facts(images: Json = IMAGES, bounds: dict[str, int] | None = None, **changes: object):
    config: Json = {"vision_config": TOWER, "text_config": SIZES, **changes}
    return FAMILY.facts(Checkpoint(config, {}, IMAGES | images, {}, {}, bounds or {}))


def test_a_saved_checkpoint_says_what_its_processor_does(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    from tests.build.oracle import make_processor
    from tests.checkpoints.tiles import cohere2_vision

    folder = cohere2_vision(tmp_path)
    found: ModelFacts = FAMILY.facts(read_checkpoint(folder))
    processor = make_processor(folder)
    blank = np.zeros((400, 400, 3), dtype=np.uint8)
    for height, width in ((20, 20), (30, 30), (400, 30), (56, 84), (84, 56)):
        picture = Image.fromarray(blank[:height, :width])
        ids = processor(images=[picture], text=[processor.image_token])["input_ids"][0]
        assert found.image_tokens(height, width) == len(ids) - 1
    assert found.min_image_tokens == 4 + 3
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    named = [named for part in parts for named in part.named_parameters()]
    real = sum(p.numel() for name, p in named if not name.startswith("head."))
    assert found.weights.vision == pytest.approx(real, rel=0.1)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Cohere2VisionConfig

    whole = Cohere2VisionConfig()
    with pytest.raises(VlmcError, match="takes 512 x 512"):
        facts(vision_config=None, downsample_factor=16)
    bare: Json = {"downsample_factor": 8}
    images: Json = {"image_processor_type": "Cohere2VisionImageProcessor", "patch_size": 4}
    found = FAMILY.facts(Checkpoint(bare, {}, images, {}, {}))
    assert found.image_token_id == whole.image_token_id
    assert found.text.hidden == whole.text_config.hidden_size
    tower, adapter = whole.vision_config, whole.alignment_intermediate_size
    inside = 4 * tower.hidden_size + 2 * tower.intermediate_size
    merged = adapter * (64 * tower.hidden_size + found.text.hidden // 2)
    assert found.weights is not None
    assert found.weights.head == 0
    assert found.weights.vision == pytest.approx(
        tower.num_hidden_layers * tower.hidden_size * inside + merged, rel=0.005
    )


@pytest.mark.parametrize(
    ("images", "changes", "expected"),
    [
        ({"patch_size": 4}, {}, r"4\*\*2 tokens for a tile, the model makes 4"),
        ({"image_processor_type": "GotOcr2ImageProcessor"}, {}, "unknown image processor"),
        ({"size": {"height": 64, "width": 64}}, {}, "tiles of 64 x 64 pixels"),
        ({}, {"downsample_factor": 3}, "do not divide into squares of 3"),
        ({}, {"vision_config": TOWER | {"model_type": "clip_vision_model"}}, "make no square"),
    ],
)
def test_variants_that_are_refused(images: Json, changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(images, **changes)


def test_the_recipe_bounds_the_tiles() -> None:
    assert facts().image_tokens(56 * 3, 56 * 4) == 13 * 4 + 13 + 2
    assert facts(bounds={"max_tiles": 2}).image_tokens(56 * 3, 56 * 4) == 3 * 4 + 3 + 2
