"""Processors as transformers with torchvision saves them, read where torchvision is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.checkpoints import MAKERS
from vlmc.families import by_config
from vlmc.passes.processor import make_processor
from vlmc.sources import read_checkpoint


@pytest.mark.parametrize("name", ["cohere2-vision", "lfm2-vl", "llama4", "qwen2-vl"])
def test_a_processor_saved_in_one_file_is_made(name: str, tmp_path: Path) -> None:
    """``ProcessorMixin.save_pretrained`` writes the image processor into the processor's file."""
    MAKERS[name](tmp_path)
    images = json.loads((tmp_path / "preprocessor_config.json").read_text("utf-8"))
    (tmp_path / "preprocessor_config.json").unlink()
    images["image_processor_type"] = images["image_processor_type"].removesuffix("Fast")
    path = tmp_path / "processor_config.json"
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**held, "image_processor": images}), encoding="utf-8")
    found = read_checkpoint(tmp_path, tokenizer=False)
    spec = by_config(found.config).facts(found).images

    processor = make_processor(tmp_path, spec)

    picture = Image.new("RGB", (60, 40), "red")
    assert len(processor(text=["a" + processor.image_token], images=[[picture]])["input_ids"][0])


@pytest.mark.parametrize("name", ["llava-clip-llama", "vipllava", "llava-next-clip-mistral"])
def test_a_processor_that_says_nothing_of_the_tower_counts_its_features(
    name: str, tmp_path: Path
) -> None:
    """As older checkpoints have it, and transformers then fails to count."""
    MAKERS[name](tmp_path)
    found = read_checkpoint(tmp_path, tokenizer=False)
    spec = by_config(found.config).facts(found).images
    picture = Image.new("RGB", (60, 40), "red")
    asked = {"text": ["a<image>"], "images": [[picture]]}
    expected = make_processor(tmp_path, spec)(**asked)["input_ids"]
    path = tmp_path / "processor_config.json"
    held = json.loads(path.read_text("utf-8"))
    for key in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        held.pop(key, None)
    path.write_text(json.dumps(held), encoding="utf-8")
    assert make_processor(tmp_path, spec)(**asked)["input_ids"] == expected


@pytest.mark.parametrize("place", ["chat_template.json", "processor_config.json"])
def test_a_template_is_found_where_older_checkpoints_have_it(place: str, tmp_path: Path) -> None:
    """Also where the processor is made of its parts, for want of torchvision."""
    MAKERS["qwen2-vl"](tmp_path)
    held = tmp_path / "chat_template.jinja"
    text = held.read_text("utf-8")
    held.unlink()
    path = tmp_path / place
    older = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**older, "chat_template": text}), encoding="utf-8")
    found = read_checkpoint(tmp_path, tokenizer=False)
    spec = by_config(found.config).facts(found).images
    assert make_processor(tmp_path, spec).chat_template == text
