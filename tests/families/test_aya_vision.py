"""What is read from an Aya Vision checkpoint's JSON, against transformers' own model."""

import json
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["aya-vision"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2}
TOWER: Json = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, **SIZES}
IMAGES: Json = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "size": {"height": 56, "width": 56},
    "crop_to_patches": False,
}
PROCESSOR: Json = {"img_size": 56, "patch_size": 14, "downsample_factor": 2}


def config(**changes: object) -> Json:
    return {"model_type": "aya_vision", "vision_config": TOWER, "text_config": SIZES} | changes


def facts(given: Json, processor: Json = PROCESSOR, **bounds: int) -> ModelFacts:
    return FAMILY.facts(Checkpoint(given, processor, IMAGES, {}, {}, bounds))


def test_a_saved_checkpoint_says_what_its_processor_does(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.checkpoints.tiles import aya_vision

    folder = aya_vision(tmp_path, adapter=40)
    read = read_checkpoint(folder)
    found = FAMILY.facts(read)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    blank = np.zeros((400, 400, 3), dtype=np.uint8)
    for height, width in ((30, 30), (60, 60), (400, 30), (56, 84), (84, 56)):
        picture = Image.fromarray(blank[:height, :width])
        ids = processor(images=[picture], text="<image>")["input_ids"][0]
        bos = ids[0] == processor.tokenizer.bos_token_id
        # Marks of more than one token are not known here.
        longer = sum(len(processor.tokenizer.tokenize(f"TILE_{n}")) - 1 for n in (5, 6))
        spared = longer if found.image_tokens(height, width) > 6 * 5 else 0
        assert found.image_tokens(height, width) == len(ids) - bos - spared
    assert found.min_image_tokens == 4 + 3
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    named = [named for part in parts for named in part.named_parameters()]
    # SigLIP's pooling head is built, and never read.
    real = sum(p.numel() for name, p in named if not name.startswith("head."))
    assert found.weights.vision == pytest.approx(real, rel=0.1)
    assert found.weights.head == 0


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import AyaVisionConfig

    whole, bare = AyaVisionConfig(), {"model_type": "aya_vision"}
    # Its 27 patches a side do not divide, in transformers either.
    with pytest.raises(VlmcError, match="27 patches a side do not divide into squares of 2"):
        facts(bare)
    images = IMAGES | {"size": {"height": 384, "width": 384}}
    processor: Json = {"img_size": 384, "patch_size": 128}
    found = FAMILY.facts(Checkpoint(bare | {"downsample_factor": 9}, processor, images, {}, {}))
    assert found.image_token_id == whole.image_token_id
    assert found.text.model_type == whole.text_config.model_type
    assert found.weights is not None
    assert found.weights.head == 0
    assert whole.tie_word_embeddings
    tower = whole.vision_config
    inside = 4 * tower.hidden_size + 2 * tower.intermediate_size
    merged = 81 * tower.hidden_size * found.text.hidden + found.text.hidden**2 // 2
    assert found.weights.vision == pytest.approx(
        tower.num_hidden_layers * tower.hidden_size * inside + merged, rel=0.005
    )


@pytest.mark.parametrize(
    ("changes", "processor", "expected"),
    [
        ({"downsample_factor": 3}, {}, "4 patches a side do not divide into squares of 3"),
        ({"vision_feature_layer": [-1, -2]}, {}, "one layer is read"),
        ({"vision_feature_select_strategy": "default"}, {}, "15 feature rows .* make no square"),
        ({"vision_config": TOWER | {"image_size": 84}}, {"img_size": 84}, "takes 84 x 84"),
        ({"vision_config": TOWER | {"model_type": "dinov2"}}, {}, "'model_type' is 'dinov2'"),
        ({}, {"patch_size": 28}, "the processor counts 1 tokens for a tile, the model makes 4"),
        ({}, {"tile_token": ""}, "'' is no mark"),
        ({}, {"image_token": 7}, "7 is no mark"),
        ({}, {"start_of_img_token": "{x}"}, "is no mark"),
    ],
)
def test_variants_that_are_refused(changes: Json, processor: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config(**changes), PROCESSOR | processor)


def test_the_recipe_bounds_the_tiles() -> None:
    given = json.loads(json.dumps(config()))
    assert facts(given).image_tokens(56 * 3, 56 * 4) == 13 * 4 + 12 + 3
    assert facts(given, max_tiles=2).image_tokens(56 * 3, 56 * 4) == 4 + 3
