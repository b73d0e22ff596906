"""What is read from an Ovis 2 checkpoint's JSON, and its prompts, against transformers' own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.ovis2 import SPECIALS, ovis2
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["ovis2"]
TOWER: Json = {"image_size": 56, "patch_size": 14, "hidden_stride": 2}
IMAGES: Json = {"image_processor_type": "Ovis2ImageProcessor", "size": 56, "crop_to_patches": True}


def facts(images: Json | None = None, *, tokens: int = 4, **changes: object) -> ModelFacts:
    config: Json = {"vision_config": TOWER, "hidden_size": 64, "text_config": {"hidden_size": 64}}
    given = Checkpoint(
        config | changes, {"image_seq_length": tokens}, IMAGES | (images or {}), {}, {}
    )
    return FAMILY.facts(given)


def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = ovis2(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    given = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        features = FAMILY.vision(model)(given)
        expected = model.get_image_features(given, return_dict=True)
    torch.testing.assert_close(features[:12], expected.pooler_output.flatten(0, 1))
    torch.testing.assert_close(features[12:], expected.visual_indicator_features)
    assert FAMILY.decoder(model) is model.model.language_model
    assert found.mark_token_ids == tuple(model.config.visual_indicator_token_ids)
    assert found.images.options["marks"] == len(features) - 12 == 5
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.visual_embeddings_table)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.05)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    for width, height in ((28, 28), (60, 60), (400, 30), (30, 90), (56, 84)):
        asked = {"images": [Image.new("RGB", (width, height))], "text": "<image>"}
        ids = processor(**asked, return_tensors="np")["input_ids"][0]
        assert found.image_tokens(height, width) == len(ids)
    assert found.min_image_tokens == 4 + 3


def builder(folder: Path) -> tuple[PromptBuilder, ModelFacts]:
    found = FAMILY.facts(read_checkpoint(folder))
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=FAMILY.plain_image,
        image_layout=found.image_layout,
        mark_token_ids=found.mark_token_ids,
    )
    bundle = folder / "bundle"
    (bundle / "processor").mkdir(parents=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
    return PromptBuilder.load(bundle), found


def ask(*sizes: tuple[int, int]) -> tuple[list[Json], list[Image.Image]]:
    parts: list[Any] = [{"type": "text", "text": "<IMG_END> What?"}]
    for _ in sizes:
        parts += [{"type": "image"}, {"type": "text", "text": "b"}]
    return [{"role": "user", "content": parts}], [Image.new("RGB", size) for size in sizes]


def test_marks_take_the_rows_behind_their_pictures(tmp_path: Path) -> None:
    # The template writes marks of its own: before, between and behind all pictures.
    template = (
        "<IMG_ROW>{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}"
        "<image>\n{% else %}{{ part['text'] }}<IMG_GRID>{% endif %}{% endfor %}"
    )
    built, found = builder(ovis2(tmp_path, template=template))
    messages, pictures = ask((28, 28), (90, 30))
    prepared = [prepare(picture, found.images) for picture in pictures]
    prompt = built.build(messages, prepared)
    ids, rows = prompt.token_ids, prompt.feature_index
    # A text that spells a mark is no mark.
    assert (ids == SPECIALS.index("<IMG_END>")).sum() == 2
    assert (rows[ids == found.image_token_id] == [*range(4), *range(9, 9 + 16)]).all()
    owners = np.searchsorted([9], rows, side="right")
    for at, mark in enumerate(found.mark_token_ids):
        behind = np.array([4, 9 + 16])[owners[ids == mark]]
        assert (rows[ids == mark] == behind + at).all()
    seen = rows[rows >= 0]
    assert (np.diff(owners[rows >= 0]) >= 0).all()
    assert set(seen.tolist()) <= set(range(4 + 5 + 16 + 5))
    assert (rows[~np.isin(ids, [found.image_token_id, *found.mark_token_ids])] == -1).all()
    alone, _ = ask()
    assert (built.build(alone, []).feature_index == -1).all()


@pytest.mark.parametrize("specials", [(), ("<image>",)])
def test_without_a_template_the_placeholder_and_a_line_stand_for_a_picture(
    tmp_path: Path, specials: tuple[str, ...]
) -> None:
    from transformers import AutoProcessor

    folder = ovis2(tmp_path, template=None, specials=specials)
    built, found = builder(folder)
    _, pictures = ask((28, 28), (90, 30))
    messages: list[Json] = [{"role": "user", "content": [{"type": "image"}] * 2}]
    prompt = built.build(messages, [prepare(picture, found.images) for picture in pictures])
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    given = {"text": "<image>\n<image>\n", "images": pictures, "return_tensors": "np"}
    assert prompt.token_ids.tolist() == processor(**given)["input_ids"][0].tolist()


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Ovis2Config

    default = Ovis2Config()
    images: Json = {"image_processor_type": "Ovis2ImageProcessorFast", "size": 224}
    given: Json = {"text_config": {"hidden_size": default.hidden_size}}
    found = FAMILY.facts(Checkpoint(given, {}, images, {}, {}))
    assert found.image_token_id == default.image_token_id
    assert found.mark_token_ids == tuple(default.visual_indicator_token_ids)
    assert found.min_image_tokens == found.image_tokens(900, 900) == 256 + 3
    assert found.text.vocab == default.text_config.vocab_size
    assert found.weights is not None
    assert found.weights.head == 0
    assert default.tie_word_embeddings
    with pytest.raises(VlmcError, match="embeddings of 1536 numbers for a decoder of 4096"):
        FAMILY.facts(Checkpoint({}, {}, images, {}, {}))


@pytest.mark.parametrize(
    ("images", "changes", "expected"),
    [
        ({"size": 70}, {}, "takes 56 x 56"),
        ({}, {"vision_config": TOWER | {"hidden_stride": 3}}, "divide into squares of 3"),
        ({}, {"vision_config": TOWER | {"patch_size": 60}}, "the most that makes sense is 56"),
        ({}, {"vision_config": TOWER | {"tokenize_function": "gumbel_argmax"}}, "gumbel_argmax"),
        ({}, {"tokens": 5}, "counts 5 tokens for a tile, the model makes 4"),
        ({}, {"visual_indicator_token_ids": [1, 2, 3, 4, 5, 6]}, "6 tokens for 5 rows"),
        ({}, {"visual_indicator_token_ids": "abc"}, "'abc' is no list of tokens"),
        ({}, {"hidden_size": 65}, "embeddings of 65 numbers for a decoder of 64"),
        ({}, {"tie_word_embeddings": False}, "head gives 151643 tokens, the decoder knows 151936"),
        ({"do_center_crop": True, "crop_size": 28}, {}, "cut to another size"),
        ({"crop_to_patches": False, "do_resize": False}, {}, "keep their own size"),
        ({"use_covering_area_grid": False, "min_patches": 13}, {}, "larger than max_tiles"),
    ],
)
def test_variants_that_are_refused(images: Json, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(images, **changes)


def test_the_recipe_bounds_the_tiles() -> None:
    config: Json = json.loads(json.dumps({"vision_config": TOWER, "hidden_size": 64}))
    config["text_config"] = {"hidden_size": 64}
    given = Checkpoint(config, {"image_seq_length": 4}, IMAGES, {}, {}, {"max_tiles": 2})
    assert FAMILY.facts(given).image_tokens(400, 800) == 3 * 4 + 3 + 1
    assert facts().image_tokens(400, 800) == 9 * 4 + 3 + 7
