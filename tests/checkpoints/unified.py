"""Small checkpoints that embed a picture's patches as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import randomize, text_config, tokenizer
from tests.checkpoints.pooled import GEMMA4_TEMPLATE, tune


def gemma4_unified(
    folder: Path, *, seed: int = 1, sounds: bool = False, budget: int = 70, **values: Any
) -> Path:
    """A Gemma 4 Unified of up to ``budget`` tokens a picture, which sliding layers see both ways.

    Its full layers have one key head, of another size, whose keys are its values.
    """
    import transformers as hf

    named = {
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
    }
    specials = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", *named.values(), "<|video|>"]
    words = tokenizer(specials, bos="<bos>", eos="<eos>", template=GEMMA4_TEMPLATE)
    words._set_model_specific_special_tokens(named)
    values = {
        "head_dim": 16,
        "global_head_dim": 20,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 24,
        "final_logit_softcapping": 8.0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        **values,
    }
    config = hf.Gemma4UnifiedConfig(
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "mm_embed_dim": 48,
            "mm_posemb_size": 80,
            "output_proj_dims": 48,
        },
        text_config=text_config("gemma4_unified_text", len(words), **values),
        audio_config={"audio_embed_dim": 20} if sounds else None,
        tie_word_embeddings=values.get("tie_word_embeddings", True),
        image_token_id=specials.index("<|image|>"),
        video_token_id=specials.index("<|video|>"),
        audio_token_id=specials.index("<|audio|>"),
        boi_token_id=specials.index("<|image>"),
        eoi_token_id=specials.index("<image|>"),
        boa_token_id=specials.index("<|audio>"),
        eoa_token_index=specials.index("<audio|>"),
    )
    model = randomize(hf.Gemma4UnifiedForConditionalGeneration(config), seed)
    tune(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Its image processor cannot be made, let alone saved, without torchvision.
    settings = {
        "image_processor_type": "Gemma4UnifiedImageProcessor",
        "patch_size": 4,
        "pooling_kernel_size": 3,
        "max_soft_tokens": budget,
    }
    processor = {"processor_class": "Gemma4UnifiedProcessor", "image_seq_length": budget}
    for name, content in (("preprocessor", settings), ("processor", processor)):
        (folder / f"{name}_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
