"""Small checkpoints of Phi-4-multimodal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import CHATML, randomize, text_config, tokenizer

PHI_SPECIALS = ["<pad>", "<|im_start|>", "<|im_end|>", "<|image|>", "<|audio|>", "<|endoftext|>"]
# Half of a head turns, by factors that change at 512 positions.
ROTARY = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.25, 2.5, 4.0],
    "long_factor": [1.5, 3.0, 8.0, 20.0],
    "original_max_position_embeddings": 512,
}


def phi4_multimodal(
    folder: Path,
    *,
    patches: int = 5,
    patch: int = 6,
    most: int = 4,
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Phi-4-multimodal of up to ``most`` crops; its image processor would need torchvision.

    ``patches`` along a side of a crop are fewer than the 31 or 32 its processor counts for, which
    tests set right; ``values`` are the decoder's.
    """
    import transformers as hf

    template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>")
    words = tokenizer(PHI_SPECIALS, bos=None, eos="<|im_end|>", template=template)
    words._set_model_specific_special_tokens(
        {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    )
    side = patches * patch
    text = text_config("phi4_multimodal", len(words), rope_parameters=dict(ROTARY), **values)
    config = hf.Phi4MultimodalConfig(
        **{key: value for key, value in text.items() if key != "model_type"},
        original_max_position_embeddings=512,
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": side,
            "crop_size": side,
            "patch_size": patch,
            "image_token_id": PHI_SPECIALS.index("<|image|>"),
            **(tower or {}),
        },
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 8,
            "input_size": 8,
            "audio_token_id": PHI_SPECIALS.index("<|audio|>"),
        },
    )
    model = randomize(hf.Phi4MultimodalForCausalLM(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    settings = {
        "image_processor_type": "Phi4MultimodalImageProcessor",
        "size": {"height": side, "width": side},
        "patch_size": patch,
        "dynamic_hd": most,
        **(images or {}),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    named = {"processor_class": "Phi4MultimodalProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder
