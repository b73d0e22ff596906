"""Checkpoints of Qwen3-Omni's thinker, whose decoder has experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import CHATML, PATCH, randomize, save_parts, text_config, tokenizer

WORDS = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *WORDS.values()]


def qwen3_omni_moe_thinker(
    folder: Path,
    *,
    seed: int = 1,
    tied: bool = False,
    deepstack: tuple[int, ...] = (0, 2),
    **values: Any,
) -> Path:
    """A thinker whose second of three decoder layers has no experts."""
    import transformers as hf

    made = tokenizer(SPECIALS, bos=None, eos="<|im_end|>", template=None)
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        extra_special_tokens=WORDS,
    )
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3]}
    mixed = {
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
        "head_dim": 20,
        "num_hidden_layers": 3,
        "rope_parameters": rotary | {"mrope_interleaved": True},
    }
    config = hf.Qwen3OmniMoeThinkerConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": list(deepstack),
        },
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
            "downsample_hidden_size": 4,
            "output_dim": 64,
        },
        text_config=text_config("qwen3_omni_moe_text", len(words), **mixed | values),
        image_token_id=SPECIALS.index("<|image_pad|>"),
        audio_token_id=SPECIALS.index("<|audio_pad|>"),
        video_token_id=SPECIALS.index("<|video_pad|>"),
        audio_start_token_id=SPECIALS.index("<|audio_start|>"),
        vision_start_token_id=SPECIALS.index("<|vision_start|>"),
        tie_word_embeddings=tied,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Qwen3OmniMoeThinkerForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = 2
    return save_parts(model, images, words, folder, Qwen3OmniMoeProcessor={})


def qwen3_omni_moe(folder: Path) -> Path:
    """As on the hub: the thinker is a part, its tensors by their first names, experts one by one.

    Every second layer has experts, whose shares are not made to sum to one.
    """
    from safetensors.torch import load_file, save_file

    own = {"decoder_sparse_step": 2, "mlp_only_layers": [], "norm_topk_prob": False}
    qwen3_omni_moe_thinker(folder, seed=2, deepstack=(0, 1, 2), num_key_value_heads=1, **own)
    path = folder / "config.json"
    whole = {"model_type": "qwen3_omni_moe", "thinker_config": json.loads(path.read_text("utf-8"))}
    path.write_text(json.dumps(whole), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    weights = folder / "model.safetensors"
    held = {f"thinker.{name}": value for name, value in load_file(weights).items()}
    held["talker.codec_head.weight"] = held["thinker.lm_head.weight"].clone()
    save_file(held, weights, metadata={"format": "pt"})
    return folder
