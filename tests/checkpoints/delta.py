"""Checkpoints whose decoder has gated delta nets."""

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

KINDS = ["linear_attention", "full_attention", "linear_attention"]


def qwen3_5(
    folder: Path, *, seed: int = 1, tied: bool = False, experts: int = 0, **text: Any
) -> Path:
    """A Qwen3.5 whose middle layer attends, with two value heads to each key head.

    With ``experts``, three of which each token takes beside the shared one.
    """
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    rotary = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.6,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
    }
    sizes = {
        "rope_parameters": rotary,
        "num_hidden_layers": len(KINDS),
        "layer_types": KINDS,
        "head_dim": 20,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 20,
        "tie_word_embeddings": tied,
    }
    kind = "qwen3_5_text"
    if experts:
        kind = "qwen3_5_moe_text"
        sizes |= {
            "num_experts": experts,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        }
    text = text_config(kind, len(words), **{**sizes, **text})
    if experts:
        del text["intermediate_size"]
    config = (hf.Qwen3_5MoeConfig if experts else hf.Qwen3_5Config)(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
            "num_position_embeddings": 25,
        },
        text_config=text,
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=QWEN_SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=QWEN_SPECIALS.index("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    made = hf.Qwen3_5MoeForConditionalGeneration if experts else hf.Qwen3_5ForConditionalGeneration
    return save_parts(calm(randomize(made(config), seed)), images, words, folder)


def calm(model: Any) -> Any:
    """Nets that remember, from a few tokens to a few hundred, and experts that agree more or less.

    Else a rounding that turns a choice of experts is all that an answer in fewer bits tells of.
    """
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data = torch.linspace(-6.0, 0.0, len(parameter))
        elif name.endswith("experts.down_proj"):
            parameter.data *= 0.4
    return model
