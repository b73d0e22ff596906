"""A small HyperCLOVA X SEED Think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    PATCH,
    QWEN_SPECIALS,
    randomize,
    save_parts,
    text_config,
    tokenizer,
)


def hyperclovax_vision_v2(
    folder: Path, *, text: str = "hyperclovax", seed: int = 1, tied: bool = False, **values: Any
) -> Path:
    """One whose tower's features are narrower than the decoder, and all whose factors count."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    factors = {
        "embedding_multiplier": 1.5,
        "logits_scaling": 0.5,
        "residual_multiplier": 0.8,
        "attention_multiplier": 0.3,
    }
    config = hf.HyperCLOVAXVisionV2Config(
        vision_config={
            "model_type": "qwen2_5_vl_vision",
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_heads": 3,
            "patch_size": PATCH,
            "out_hidden_size": 40,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config(
            text, len(words), **{**factors, "tie_word_embeddings": tied, **values}
        ),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        tie_word_embeddings=tied,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, min_pixels=4 * (2 * PATCH) ** 2, max_pixels=24 * (2 * PATCH) ** 2
    )
    model = randomize(hf.HyperCLOVAXVisionV2ForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, HyperCLOVAXVisionV2Processor={})
