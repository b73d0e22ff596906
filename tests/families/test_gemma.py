"""Gemma 3 and PaliGemma: what is refused, and how texts that spell their tokens are kept apart."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.build.oracle import make_processor
from tests.checkpoints.bidirectional import gemma3, paligemma
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PromptBuilder
from vlmc.runtime.template import ChatTemplate
from vlmc.runtime.tokenizer import TextTokenizer
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

TEXT: Json = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
TOWER: Json = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14}
IMAGES: Json = {"size": {"height": 56, "width": 56}, "image_seq_length": 16}


def facts(model_type: str, images: Json, processor: Json, **changes: object) -> ModelFacts:
    config: Json = {"model_type": model_type, "text_config": TEXT, "vision_config": TOWER}
    config |= {"mm_tokens_per_image": 4, "projection_dim": 64} | changes
    name = "Gemma3ImageProcessor" if model_type == "gemma3" else "SiglipImageProcessor"
    given = IMAGES | {"image_processor_type": name} | images
    checkpoint = Checkpoint(config, {"image_seq_length": 4} | processor, given, {}, {})
    return by_model_type(model_type).facts(checkpoint)


@pytest.mark.parametrize(
    ("changes", "images", "processor", "expected"),
    [
        ({"mm_tokens_per_image": 400}, {}, {}, "400 tokens of a picture of 4 x 4 patches"),
        ({"mm_tokens_per_image": 9}, {}, {}, "counts 4 tokens for a picture, the model makes 16"),
        ({}, {}, {"image_seq_length": 5}, "counts 5 tokens for a picture, the model makes 4"),
        ({}, {"size": {"height": 28, "width": 28}}, {}, "28 x 28 pixels"),
        ({"text_config": TEXT | {"use_bidirectional_attention": True}}, {}, {}, "both ways"),
        ({"text_config": TEXT | {"layer_types": ["linear_attention"]}}, {}, {}, "linear_attention"),
        ({"vision_config": TOWER | {"model_type": "clip"}}, {}, {}, "'clip'"),
        ({"vision_config": TOWER | {"patch_size": 57}}, {}, {}, "a patch of 57 pixels"),
    ],
)
def test_gemma3_variants_that_are_refused(
    changes: Json, images: Json, processor: Json, expected: str
) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts("gemma3", images, processor, **changes)


@pytest.mark.parametrize(
    ("changes", "images", "expected"),
    [
        ({"projection_dim": 32}, {}, "rows of 32, the decoder takes 64"),
        ({}, {"image_seq_length": 9}, "counts 9 tokens for a picture, the model makes 16"),
        ({}, {"image_seq_length": None}, "'image_seq_length' is missing"),
        ({"text_config": TEXT | {"model_type": "llama"}}, {}, "'llama'"),
    ],
)
def test_paligemma_variants_that_are_refused(changes: Json, images: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts("paligemma", images, {}, **changes)


def test_the_kinds_of_layers_that_are_not_said() -> None:
    kinds = [mask.layers for mask in facts("gemma3", {}, {}).masks]
    assert kinds == ["full_attention", "sliding_attention"]
    short = TEXT | {"num_hidden_layers": 5}
    assert [mask.window for mask in facts("gemma3", {}, {}, text_config=short).masks] == [4096]
    [only] = facts("paligemma", {}, {}).masks
    assert (only.layers, only.spans) == (None, "prompt")


def builder(folder: Path, crops: int | None = None) -> tuple[PromptBuilder, ModelFacts]:
    read = read_checkpoint(folder, tokenizer=False)
    family = by_model_type(str(read.config["model_type"]))
    found = family.facts(read)
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=family.plain_image,
        image_layout=found.image_layout,
        frame=family.frame,
        extra_tokens=family.extra_tokens,
    )
    template = files.get("chat_template.jinja")
    chat = None if template is None else ChatTemplate(template.decode(), at="template")
    return PromptBuilder(spec, TextTokenizer(files["tokenizer.json"]), chat), found


def part(text: str) -> Json:
    return {"type": "text", "text": text}


SPELLED = ["<start_of_image>", "a <image> b", "<bos>", "<image_soft_token>x", "\n\n", "é <eos>"]


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("make", [gemma3, paligemma])
def test_texts_that_spell_a_token_stay_text(make: Any, text: str, tmp_path: Path) -> None:
    prompts, found = builder(make(tmp_path))
    image = prepare(Image.new("RGB", (30, 40)), found.images)
    message: Json = {"role": "user", "content": [{"type": "image"}, part(text)]}
    prompt = prompts.build([message], [image])
    [span] = prompt.spans
    assert prompts.decode(prompt.token_ids.tolist(), skip_special_tokens=False).count(text) >= 1
    assert (prompt.token_ids == found.image_token_id).sum() == image.tokens
    assert span.length >= image.tokens
    assert (prompt.token_ids == prompts.spec.image_token_id).sum() == image.tokens


@pytest.mark.parametrize("make", [gemma3, paligemma])
def test_without_a_template_the_processors_plain_format(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path, template=None)
    prompts, found = builder(folder)
    processor = make_processor(folder)
    pictures = [Image.new("RGB", (30, 40)), Image.new("RGB", (50, 20))]
    content = [part("see "), {"type": "image"}, part(" and"), {"type": "image"}, part("\nwhat?")]
    prompt = prompts.build(
        [{"role": "user", "content": content}], [prepare(p, found.images) for p in pictures]
    )
    token = processor.image_token
    text = f"see {token} and{token}\nwhat?"
    expected = processor(text=[text], images=[pictures])["input_ids"][0]
    assert prompt.token_ids.tolist() == list(expected)
