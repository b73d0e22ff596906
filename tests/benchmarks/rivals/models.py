"""Checkpoints in the shapes of real models, with random bfloat16 weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals.vocabulary import tokenizer
from tests.checkpoints import parts


@dataclass(frozen=True)
class Model:
    """One row of the benchmark.

    Attributes:
        title: Heads its table.
        picture: Width and height of the pictures asked about.
        image_tokens: What one of them takes.
        make: Writes the checkpoint into a folder.
        text_model: The decoder alone: its transformers class and model type.
    """

    title: str
    picture: tuple[int, int]
    image_tokens: int
    make: Callable[[Path], None]
    text_model: tuple[str, str]


def _weights(kind: Any, config: Any) -> Any:
    import torch

    torch.set_default_dtype(torch.bfloat16)
    try:
        model = kind(config)
    finally:
        torch.set_default_dtype(torch.float32)
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02, generator=random)
        if parameter.dim() == 1:
            parameter.data += 1
    return model


def llava05(folder: Path) -> None:
    """LLaVA-1.5 with a CLIP-L/14 tower at 336 and the decoder of Qwen2-0.5B."""
    _llava(folder, _CLIP_L, _QWEN2_05, 336)


def tiny(folder: Path) -> None:
    """A LLaVA of two layers and little width, to try the harness itself."""
    tower = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    decoder = parts.text_config("qwen2", 600)
    _llava(folder, _CLIP_L | tower | {"num_attention_heads": 3, "image_size": 56}, decoder, 56)


_CLIP_L = {
    "model_type": "clip_vision_model",
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_QWEN2_05 = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llava(folder: Path, tower: dict[str, Any], decoder: dict[str, Any], side: int) -> None:
    import transformers as hf

    specials = parts.LLAVA_SPECIALS
    words = tokenizer(
        decoder["vocab_size"], specials, bos="<s>", eos="</s>", template=parts.LLAVA_TEMPLATE
    )
    config = hf.LlavaConfig(
        vision_config=tower,
        text_config=decoder | {"tie_word_embeddings": True},
        image_token_index=specials.index("<image>"),
        tie_word_embeddings=True,
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        tokenizer=words,
        patch_size=tower["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=parts.LLAVA_TEMPLATE,
        image_token="<image>",
    )
    _weights(hf.LlavaForConditionalGeneration, config).save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # the older file, which some engines read


def qwen2vl2b(folder: Path) -> None:
    """Qwen2-VL-2B."""
    import transformers as hf

    specials = parts.QWEN_SPECIALS
    words = tokenizer(151_936, specials, bos=None, eos="<|im_end|>", template=parts.CHATML)
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    ids = {
        f"{name}_token_id": specials.index(f"<|{word}|>")
        for name, word in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 1536,
            "num_heads": 16,
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        text_config={
            "model_type": "qwen2_vl_text",
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": rotary,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "tie_word_embeddings": True,
        },
        tie_word_embeddings=True,
        **ids,
    )
    _weights(hf.Qwen2VLForConditionalGeneration, config).save_pretrained(folder)
    hf.Qwen2VLImageProcessorPil().save_pretrained(folder)
    words.save_pretrained(folder)


def smolvlm256m(folder: Path) -> None:
    """SmolVLM-256M: a picture of 2048 x 1024 becomes nine tiles of 64 tokens."""
    import transformers as hf

    marks = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    specials = ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<image>"]
    specials += ["<fake_token_around_image>", "<global-img>", *marks]
    words = tokenizer(
        49_280,
        specials,
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        template=parts.SMOLVLM_TEMPLATE,
    )
    config = hf.SmolVLMConfig(
        vision_config={
            "image_size": 512,
            "patch_size": 16,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49_280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        image_token_id=specials.index("<image>"),
        scale_factor=4,
        pad_token_id=0,
    )
    images = hf.SmolVLMImageProcessorPil(
        size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
    )
    _weights(hf.SmolVLMForConditionalGeneration, config).save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    named = {"image_seq_len": 64, "processor_class": "SmolVLMProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named), encoding="utf-8")


MODELS = {
    "llava05": Model(
        "LLaVA-1.5: CLIP-L/336 and Qwen2-0.5B",
        (640, 480),
        576,
        llava05,
        ("Qwen2ForCausalLM", "qwen2"),
    ),
    "smolvlm256m": Model(
        "SmolVLM-256M", (2048, 1024), 576, smolvlm256m, ("LlamaForCausalLM", "llama")
    ),
    "qwen2vl2b": Model("Qwen2-VL-2B", (672, 672), 576, qwen2vl2b, ("Qwen2ForCausalLM", "qwen2")),
    "tiny": Model("a tiny LLaVA", (64, 48), 16, tiny, ("Qwen2ForCausalLM", "qwen2")),
}
