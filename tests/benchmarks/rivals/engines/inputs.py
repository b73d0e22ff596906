"""A question as transformers' model inputs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.session import Question
from tests.build.oracle import make_processor


def rendered(tokenizer: Any, text: str, images: int) -> str:
    """The chat template's text of one user message, pictures first."""
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    parts = [*parts, {"type": "text", "text": text}]
    template = {"tokenize": False, "add_generation_prompt": True}
    prompt: str = tokenizer.apply_chat_template([{"role": "user", "content": parts}], **template)
    return prompt


@cache
def _processor(folder: str) -> Any:
    return make_processor(Path(folder))


def model_inputs(folder: str, question: Question, dtype: Any) -> Any:
    """``input_ids``, ``pixel_values`` and what else the model takes."""
    from PIL import Image

    processor = _processor(folder)
    assert question.image is not None
    text = rendered(processor, question.text, 1)
    with Image.open(question.image) as picture:
        inputs = processor(text=[text], images=[picture.convert("RGB")], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    return inputs
