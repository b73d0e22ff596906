"""Small checkpoints of models that are near relatives of another family's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    IMAGE_SIZE,
    INTERNVL_TEMPLATE,
    PATCH,
    randomize,
    save,
    text_config,
    tokenizer,
)


def qianfan_ocr(
    folder: Path,
    *,
    text: str = "qwen3",
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    word: str = "<image>",
    named: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Qianfan-OCR of up to six tiles, four tokens each; ``word`` is what its template writes."""
    import transformers as hf

    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values()]
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=None)
    words._set_model_specific_special_tokens(marks)
    config = hf.QianfanOCRConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            **(tower or {}),
        },
        text_config=text_config(text, len(words), **{"head_dim": 24, **values}),
        image_token_id=specials.index("<IMG_CONTEXT>"),
        image_seq_length=4,
        **(named or {}),
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
    )
    processor = hf.QianfanOCRProcessor(
        image_processor=images,
        tokenizer=words,
        image_seq_length=4,
        image_placeholder_token=word,
        chat_template=INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", word),
    )
    model = randomize(hf.QianfanOCRForConditionalGeneration(config), seed)
    return save(model, processor, folder)
