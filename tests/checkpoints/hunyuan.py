"""A small HunYuan-VL: marks behind rows of a picture, positions of four axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import CHATML, PATCH, randomize, save, text_config, tokenizer

SPECIALS = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>", "<img>", "<imgpad>", "</img>"]
TEMPLATE = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<img><imgpad></img>")


def hunyuan_vl(
    folder: Path,
    *,
    seed: int = 1,
    rotary: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    template: str | None = TEMPLATE,
    **values: Any,
) -> Path:
    """A HunYuan-VL whose rotary base is stretched; ``values`` are the decoder's."""
    import transformers as hf

    words = tokenizer(SPECIALS, bos="<s>", eos="<|im_end|>", template=None)
    named = {"image_start_token": "<img>", "image_token": "<imgpad>", "image_end_token": "</img>"}
    words._set_model_specific_special_tokens(named)
    stretched = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 1.0,
        "alpha": 50.0,
        "mrope_section": [2, 2, 2, 2],
    }
    settled = {"rope_parameters": rotary or stretched, "head_dim": 16}
    config = hf.HunYuanVLConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": PATCH,
            "max_image_size": 5 * PATCH + 3,
            "out_hidden_size": 64,
            **(tower or {}),
        },
        text_config=text_config("hunyuan_vl_text", len(words), **{**settled, **values}),
        image_token_id=SPECIALS.index("<imgpad>"),
        im_start_id=SPECIALS.index("<img>"),
        im_end_id=SPECIALS.index("</img>"),
        tie_word_embeddings=values.get("tie_word_embeddings", True),
    )
    small = {"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    processor = hf.HunYuanVLProcessor(
        image_processor=hf.HunYuanVLImageProcessorPil(
            **{"patch_size": PATCH, "size": small, **(images or {})}
        ),
        tokenizer=words,
        chat_template=template,
    )
    model = randomize(hf.HunYuanVLForConditionalGeneration(config), seed)
    return save(model, processor, folder)
