"""Checkpoints of MiniCPM-V: slices of a picture, merged inside the tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.delta import KINDS, calm
from tests.checkpoints.parts import (
    CHATML,
    PATCH,
    randomize,
    save_parts,
    text_config,
    tokenizer,
)

NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values()]
TEMPLATE = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\n")


def minicpmv(
    folder: Path, *, kind: str = "V4_6", mode: str = "16x", seed: int = 1, **config: Any
) -> Path:
    """A MiniCPM-V 4.6 whose tower merges behind the second of its three layers.

    The whole picture and its slices have about 16 feature rows each.
    """
    import transformers as hf

    words = tokenizer(SPECIALS, bos=None, eos="<|im_end|>", template=TEMPLATE)
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        extra_special_tokens=NAMED,
    )
    rotary = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.6,
        "mrope_section": [2, 2, 2],
        "mrope_interleaved": True,
    }
    text = text_config(
        "qwen3_5_text",
        len(words),
        rope_parameters=rotary,
        num_hidden_layers=len(KINDS),
        layer_types=KINDS,
        head_dim=20,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=12,
        linear_value_head_dim=20,
    )
    made = getattr(hf, f"MiniCPM{kind}Config")(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 10 * PATCH,
            "patch_size": PATCH,
        },
        text_config=text,
        insert_layer_id=1,
        downsample_mode=mode,
        image_token_id=SPECIALS.index(NAMED["image_token"]),
        video_token_id=SPECIALS.index(NAMED["video_token"]),
        **config,
    )
    images = hf.MiniCPMV4_6ImageProcessorPil(
        patch_size=PATCH,
        scale_resolution=(16 if mode == "16x" else 8) * PATCH,
        max_slice_nums=4,
        downsample_mode=mode,
    )
    model = getattr(hf, f"MiniCPM{kind}ForConditionalGeneration")(made)
    model = calm(randomize(model, seed))
    return save_parts(model, images, words, folder, **{f"MiniCPM{kind}Processor": {}})


def minicpmv4_7(folder: Path) -> Path:
    """A MiniCPM-V 4.7, which has places for the marks around slices too."""
    marks = ("image_start", "image_end", "slice_start", "slice_end")
    ids = {f"{mark}_id": SPECIALS.index(NAMED[f"{mark}_token"]) for mark in marks}
    words = tokenizer(SPECIALS, bos=None, eos="<|im_end|>", template=TEMPLATE)
    newline = words.encode("\n")[0]
    return minicpmv(folder, kind="V4_7", newline_id=newline, seed=3, **ids)
