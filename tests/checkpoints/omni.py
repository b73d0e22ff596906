"""Checkpoints of Qwen2.5-Omni's thinker, which has a tower of sounds too."""

from __future__ import annotations

import json
from pathlib import Path

from tests.checkpoints.parts import CHATML, PATCH, randomize, save_parts, text_config, tokenizer

NAMED = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values()]
TEMPLATE = CHATML.replace(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_bos|><|IMAGE|><|vision_eos|>"
)


def qwen2_5_omni_thinker(folder: Path, *, seed: int = 1) -> Path:
    """A thinker whose second of three tower layers sees all of a picture."""
    import transformers as hf

    made = tokenizer(SPECIALS, bos=None, eos="<|im_end|>", template=None)
    words = hf.PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
        extra_special_tokens=NAMED,
    )
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
            "output_dim": 64,
        },
        text_config=text_config("qwen2_5_omni_text", len(words), rope_parameters=rotary),
        image_token_id=SPECIALS.index("<|IMAGE|>"),
        audio_token_id=SPECIALS.index("<|AUDIO|>"),
        video_token_id=SPECIALS.index("<|VIDEO|>"),
        audio_start_token_id=SPECIALS.index("<|audio_bos|>"),
        audio_end_token_id=SPECIALS.index("<|audio_eos|>"),
        vision_start_token_id=SPECIALS.index("<|vision_bos|>"),
        vision_end_token_id=SPECIALS.index("<|vision_eos|>"),
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Qwen2_5OmniThinkerForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = 2
    return save_parts(model, images, words, folder, Qwen2_5OmniProcessor={})


def qwen2_5_omni(folder: Path) -> Path:
    """As on the hub: the thinker is a part; transformers saves its tensors by their first names."""
    from safetensors.torch import load_file, save_file

    qwen2_5_omni_thinker(folder, seed=2)
    path = folder / "config.json"
    whole = {"model_type": "qwen2_5_omni", "thinker_config": json.loads(path.read_text("utf-8"))}
    path.write_text(json.dumps(whole), encoding="utf-8")
    (folder / "generation_config.json").unlink()
    weights = folder / "model.safetensors"
    held = {f"thinker.{name}": value for name, value in load_file(weights).items()}
    held["talker.codec_head.weight"] = held["thinker.lm_head.weight"].clone()
    save_file(held, weights, metadata={"format": "pt"})
    return folder
