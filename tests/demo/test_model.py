"""The model folder that comes with the package loads as any Hugging Face folder, and is right."""

import json

import numpy as np
import pytest
import torch
import transformers

from vlmc.demo import folder as layout
from vlmc.demo.batches import SYSTEM_TEXTS, Batcher, square
from vlmc.demo.evaluate import MODEL_FOLDER, transformers_answers
from vlmc.demo.questions import NO_PICTURE, questions
from vlmc.demo.score import score
from vlmc.demo.world import render, scene

MIB = 1 << 20
TEXTS = (
    "What colour is the circle?",
    "  two  spaces\nand\ta tab ",
    "Grüße, 你好, مرحبا, 🙂",
    "MEDAL and medal",
    "\x00\x7f\u200b",
)


@pytest.fixture(scope="module")
def processor():
    return transformers.AutoProcessor.from_pretrained(MODEL_FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return transformers.LlavaForConditionalGeneration.from_pretrained(
        MODEL_FOLDER, local_files_only=True
    ).eval()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    ],
)
def test_folder_has_what_a_model_folder_has(name):
    assert (MODEL_FOLDER / name).is_file()


def test_weights_fit_in_eight_mib(model):
    weights = sum(path.stat().st_size for path in MODEL_FOLDER.glob("*.safetensors"))
    assert weights <= 8 * MIB
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_processor_is_the_one_trained_with(processor):
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.chat_template == layout.CHAT_TEMPLATE
    told = json.loads((MODEL_FOLDER / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert told["size"] == {"shortest_edge": layout.IMAGE_SIDE}


def test_training_pixels_are_the_processors(processor):
    for seed in range(100):
        image = render(scene(seed))
        seen = processor.image_processor(
            image, do_rescale=False, do_normalize=False, return_tensors="np"
        )["pixel_values"][0]
        assert np.array_equal(seen, square(image).transpose(2, 0, 1))


def test_training_ids_are_the_chat_templates(processor):
    """A question asked alone is laid out in training exactly as the template renders it."""
    rows = 8
    batch = Batcher(processor.tokenizer.backend_tokenizer, rows=rows, turns=1).batch(0)
    for row in range(rows):
        trained = [int(i) for i in batch.ids[row] if i != layout.PAD]
        assert layout.IMAGE in trained  # these rows have a picture
        assert trained in _rendered(processor, scene(row, split="train"))


def _rendered(processor, shown):
    found = []
    for one in questions(shown):
        parts = [{"type": "image"}, {"type": "text", "text": one.question}]
        turn = [{"role": "user", "content": parts}, {"role": "assistant", "content": one.answer}]
        for system in (None, *SYSTEM_TEXTS):
            first = [{"role": "system", "content": system}] if system else []
            text = processor.apply_chat_template(first + turn)
            inputs = processor(images=render(shown), text=text, add_special_tokens=False)
            found.append(list(inputs["input_ids"][0]))
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_gives_any_text_back(processor, text):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text
    assert max(ids) < layout.VOCABULARY


def test_words_are_spelled_letter_by_letter(processor):
    assert processor.tokenizer.tokenize("ZEBRA") == list("ZEBRA")


def test_template_renders_roles_and_parts(processor):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<s><|system|>S<|user|><image>Q<|assistant|>A</s><|user|>R<|assistant|>"


def test_held_out_pictures_are_answered_right():
    result = score(transformers_answers(MODEL_FOLDER), pictures=60)
    assert result["overall"]["asked"] > 300
    assert result["overall"]["accuracy"] >= 0.97, result["misses"]
    assert min(tally["accuracy"] for tally in result["kinds"].values()) >= 0.9, result["misses"]


def _generate(processor, model, messages, images):
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=images, text=text, add_special_tokens=False, return_tensors="pt")
    generated = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(generated, skip_special_tokens=True)


def test_a_conversation_goes_on(processor, model):
    right = asked = 0
    for seed in range(5):
        shown = scene(seed)
        messages = []
        for one in questions(shown)[-4:]:
            content = [{"type": "text", "text": one.question}]
            if not messages:
                content.insert(0, {"type": "image"})
            messages.append({"role": "user", "content": content})
            answer = _generate(processor, model, messages, render(shown))
            messages.append({"role": "assistant", "content": one.answer})
            asked += 1
            right += answer == one.answer
    assert right >= asked - 1


def test_without_a_picture_it_says_so(processor, model):
    messages = [{"role": "user", "content": "What colour is the circle?"}]
    assert _generate(processor, model, messages, None) == NO_PICTURE
