"""A small Cosmos 3 Edge."""

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


def cosmos3_edge(
    folder: Path,
    *,
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    named: dict[str, Any] | None = None,
    template: str | None = CHATML,
    **values: Any,
) -> Path:
    """A Cosmos 3 Edge whose table of positions is finer than some pictures' patches."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=template)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3]}
    given = {"rope_parameters": rotary, "head_dim": 20, **values}
    config = hf.Cosmos3EdgeConfig(
        vision_config={
            "num_hidden_layers": 2,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_attention_heads": 3,
            "patch_size": PATCH,
            "num_patches": 25,
            **(tower or {}),
        },
        text_config=text_config("cosmos3_edge_text", len(words), **given),
        projector_hidden_size=56,
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=QWEN_SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=QWEN_SPECIALS.index("<|vision_end|>"),
        **(named or {}),
    )
    size = {"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    made = hf.Cosmos3EdgeImageProcessorPil(**{"patch_size": PATCH, "size": size, **(images or {})})
    model = randomize(hf.Cosmos3EdgeForConditionalGeneration(config), seed)
    return save_parts(model, made, words, folder)
