"""What is read from a GOT-OCR 2 checkpoint's JSON, against transformers' own model."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["got-ocr2"]
IMAGES: Json = {"image_processor_type": "GotOcr2ImageProcessor", "size": 56}


def facts(images: Json = IMAGES, **changes: object) -> ModelFacts:
    tower: Json = {"image_size": 56, "patch_size": 14}
    config: Json = {"vision_config": tower, "text_config": {"hidden_size": 64}} | changes
    return FAMILY.facts(Checkpoint(config, {}, IMAGES | images, {}, {}))


@pytest.mark.parametrize("side", [30, 42, 48, 54, 60])
def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(
    side: int, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.tiles import got_ocr2

    folder = got_ocr2(tmp_path, tower={"image_size": side})
    read = read_checkpoint(folder)
    processor = {**read.image_processor, "size": {"height": side, "width": side}}
    found = FAMILY.facts(Checkpoint(read.config, {}, processor, {}, {}))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_token_id == model.config.image_token_id
    given = torch.randn(1, 3, side, side)
    with torch.no_grad():
        features = FAMILY.vision(model)(given)
        expected = model.model.get_image_features(given).pooler_output[0]
    torch.testing.assert_close(features, expected)
    assert found.image_tokens(10, 300) == found.min_image_tokens == len(features)
    assert FAMILY.decoder(model) is model.model.language_model
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.1)


def test_without_a_template_a_page_is_asked_as_the_processor_asks(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    from tests.checkpoints.tiles import got_ocr2

    folder = got_ocr2(tmp_path / "model", template=None)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    processor.num_image_tokens = 9
    page = Image.new("RGB", (40, 60))
    expected = processor(images=page)["input_ids"][0]
    found = FAMILY.facts(read_checkpoint(folder))
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=FAMILY.plain_image,
        default_template=FAMILY.template,
    )
    bundle = tmp_path / "bundle"
    (bundle / "processor").mkdir(parents=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
    asked = [{"type": "image"}, {"type": "text", "text": " OCR: "}]
    messages: list[Json] = [{"role": "user", "content": asked}]
    prompt = PromptBuilder.load(bundle).build(messages, [prepare(page, found.images)])
    assert prompt.token_ids.tolist() == list(expected)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import GotOcr2Config

    whole = GotOcr2Config()
    images: Json = {"image_processor_type": "GotOcr2ImageProcessorFast"}
    images["size"] = {"height": 1024, "width": 1024}
    found = FAMILY.facts(Checkpoint({}, {}, images, {}, {}))
    assert found.image_token_id == whole.image_token_id
    assert found.min_image_tokens == 256
    text = whole.text_config
    assert (found.text.hidden, found.text.layers) == (text.hidden_size, text.num_hidden_layers)
    assert (found.text.vocab, found.text.kv_heads) == (text.vocab_size, text.num_key_value_heads)
    assert found.text.max_positions == text.max_position_embeddings
    assert found.weights is not None
    assert found.weights.language == pytest.approx(
        24 * 1024 * (4 * 1024 + 3 * text.intermediate_size)
    )
    assert found.weights.head == 0


@pytest.mark.parametrize(
    ("images", "changes", "expected"),
    [
        ({"size": 64}, {}, "pictures of 64 x 64 pixels"),
        ({"do_resize": False}, {}, "would keep different sizes"),
        ({}, {"vision_config": {"image_size": 56, "patch_size": 60}}, "a patch of 60 pixels"),
        ({}, {"vision_config": {"model_type": "sam_vision_model"}}, "'sam_vision_model'"),
        ({}, {"vision_config": {"image_size": [56, 56]}}, "not a whole number"),
    ],
)
def test_variants_that_are_refused(images: Json, changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(images, **changes)
