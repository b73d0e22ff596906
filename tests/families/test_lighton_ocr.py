"""What is read from a LightOnOCR checkpoint's JSON, against transformers' own model."""

from pathlib import Path

import pytest

from tests.build.questions import picture
from tests.checkpoints.ocr import lighton_ocr
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint
from vlmc.runtime.images import prepare
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["lighton-ocr"]


@pytest.mark.parametrize(("patch", "unit", "merge"), [(3, 3, 2), (3, 6, 2), (2, 5, 3), (4, 4, 1)])
def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(
    patch: int, unit: int, merge: int, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = lighton_ocr(tmp_path, patch=patch, unit=unit, merge=merge)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    shown = picture(50, 41)
    given = processor(text=["<|image_pad|>"], images=[shown], return_tensors="pt")
    prepared = prepare(shown, found.images)
    assert given["input_ids"].tolist() == [[found.image_token_id] * prepared.tokens]
    with torch.no_grad():
        features = FAMILY.vision(model)(*map(torch.from_numpy, prepared.tensors.values()))
        [expected] = model.get_image_features(
            given["pixel_values"], given["image_sizes"], return_dict=True
        ).pooler_output
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize(
    ("config", "processor", "images", "expected"),
    [
        ({"spatial_merge_size": 3}, {}, {}, "spatial_merge_size is 2, the model's 3"),
        ({"vision_config": {"patch_size": 7}}, {}, {}, "patch_size is 14, the model's 7"),
        ({"vision_config": {"model_type": "siglip"}}, {}, {}, "'siglip'"),
        ({}, {"patch_size": 16}, {}, "patch_size is 16, the model's 14"),
        ({}, {}, {"patch_size": {"height": 14, "width": 28}}, "is no square"),
        ({}, {}, {"patch_size": "small"}, "patch_size"),
    ],
)
def test_variants_that_are_refused(
    config: Json, processor: Json, images: Json, expected: str
) -> None:
    given: Json = {"image_processor_type": "PixtralImageProcessor", "patch_size": 14, **images}
    with pytest.raises(VlmcError, match=expected):
        FAMILY.facts(Checkpoint({"model_type": "lighton_ocr", **config}, processor, given, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import LightOnOcrConfig

    given: Json = {"image_processor_type": "PixtralImageProcessor"}
    found = FAMILY.facts(Checkpoint({"model_type": "lighton_ocr"}, {}, given, {}, {}))
    known = LightOnOcrConfig()
    text = known.text_config
    assert (found.text.hidden, found.text.layers) == (text.hidden_size, text.num_hidden_layers)
    assert (found.text.vocab, found.text.kv_heads) == (text.vocab_size, text.num_key_value_heads)
    assert found.text.head_dim == text.head_dim
    assert found.image_token_id == known.image_token_id
    assert found.images.options["patch_size"] == known.vision_config.patch_size
