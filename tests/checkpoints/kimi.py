"""A small Kimi K2.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import CHATML, PATCH, randomize, text_config, tokenizer

MARKS = ["<|media_begin|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>"]
PICTURE = "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
# Latent attention, experts in groups, a first layer without them.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}


def kimi_k25(
    folder: Path,
    *,
    text: str = "deepseek_v3",
    seed: int = 1,
    merge: int = 2,
    heads: int = 3,
    images: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Kimi K2.5 of up to 24 patches and 8 along a side; its table of positions is 5 x 5."""
    import transformers as hf

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKS, "<|video|>"]
    template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", PICTURE)
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=template)
    given = {**(LATENT if text == "deepseek_v3" else {}), **values}
    config = hf.Kimi_K25Config(
        vision_config={
            "patch_size": PATCH,
            "pos_emb_height": 5,
            "pos_emb_width": 5,
            "num_attention_heads": heads,
            "num_hidden_layers": 2,
            "hidden_size": 48,
            "intermediate_size": 64,
            "merge_kernel_size": [merge, merge],
        },
        text_config=text_config(text, len(words), **given),
        projection_hidden_size=48,
        image_token_id=specials.index("<|media_pad|>"),
        video_token_id=specials.index("<|video|>"),
        tie_word_embeddings=given.get("tie_word_embeddings", False),
    )
    randomize(model := hf.Kimi_K25ForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Its image processor cannot be made, let alone saved, without torchvision.
    settings = {
        "image_processor_type": "Kimi_K25ImageProcessor",
        "patch_size": PATCH,
        "merge_size": merge,
        "max_patches": 24,
        "size": {"max_height": 8, "max_width": 8},
        **(images or {}),
    }
    named = {"processor_class": "Kimi_K25Processor"}
    for name, content in (("preprocessor", settings), ("processor", named)):
        (folder / f"{name}_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
