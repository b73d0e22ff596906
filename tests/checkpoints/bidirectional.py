"""Small checkpoints whose decoders attend both ways inside pictures or prompts, or in chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import IMAGE_SIZE, PATCH, randomize, save, text_config, tokenizer

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3(
    folder: Path,
    *,
    seed: int = 1,
    side: int = IMAGE_SIZE,
    tokens: int = 4,
    template: str | None = GEMMA_TEMPLATE,
    **values: Any,
) -> Path:
    """A Gemma 3 of four tokens a picture, its window shorter than two pictures are apart."""
    import transformers as hf

    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    turns = ["<start_of_turn>", "<end_of_turn>"]
    specials = ["<pad>", "<eos>", "<bos>", *turns, *named.values()]
    # Line breaks join with those of the template, as they do in Gemma's own vocabulary.
    words = tokenizer(specials, bos="<bos>", eos="<eos>", template=None, sentences=BREAKS)
    words._set_model_specific_special_tokens(named)
    values = {
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 11,
        "layer_types": ["sliding_attention", "full_attention"],
        **values,
    }
    values.setdefault("vocab_size", len(words))
    config = hf.Gemma3Config(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": side,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "vision_use_head": False,
        },
        text_config=text_config("gemma3_text", **values),
        mm_tokens_per_image=tokens,
        image_token_index=specials.index("<image_soft_token>"),
        boi_token_index=specials.index("<start_of_image>"),
        eoi_token_index=specials.index("<end_of_image>"),
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessorPil(size={"height": side, "width": side}),
        tokenizer=words,
        chat_template=template,
        image_seq_length=tokens,
    )
    model = randomize(hf.Gemma3ForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def paligemma(
    folder: Path,
    *,
    text: str = "gemma",
    seed: int = 1,
    template: str | None = None,
    **values: Any,
) -> Path:
    """A PaliGemma of 16 tokens a picture; with ``gemma2``, its window is shorter than a prompt."""
    import transformers as hf

    specials = ["<pad>", "<eos>", "<bos>", "<image>"]
    words = tokenizer(specials, bos="<bos>", eos="<eos>", template=None)
    words._set_model_specific_special_tokens({"image_token": "<image>"})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = hf.SiglipImageProcessorPil(size=size, image_seq_length=16)
    processor = hf.PaliGemmaProcessor(images, words, chat_template=template)
    values = {"head_dim": 16, **values}
    if text == "gemma2":
        own = {"sliding_window": 9, "query_pre_attn_scalar": 12, "final_logit_softcapping": 2.0}
        values = {**own, "attn_logit_softcapping": 3.0, **values}
    values.setdefault("vocab_size", len(words))
    config = hf.PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "projection_dim": 64,
            "vision_use_head": False,
        },
        text_config=text_config(text, **values),
        image_token_index=specials.index("<image>"),
        projection_dim=64,
        hidden_size=64,
    )
    model = randomize(hf.PaliGemmaForConditionalGeneration(config), seed)
    return save(model, processor, folder)


BREAKS = ["a\n\nb\n\n\nc\n\n\n\nd\n<x>\n\n"] * 40


def llama4(folder: Path, *, seed: int = 1, **values: Any) -> Path:
    """A Llama 4 of up to four tiles, four tokens each; chunks shorter than most prompts.

    One layer has no positions, one no experts.
    """
    import transformers as hf

    marks = ["<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>"]
    marks += ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    turns = ["<|header_start|>", "<|header_end|>", "<|eot|>"]
    specials = ["<|finetune_right_pad|>", "<|begin_of_text|>", *turns, *marks]
    words = tokenizer(specials, bos="<|begin_of_text|>", eos="<|eot|>", template=LLAMA4_TEMPLATE)
    values = {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "intermediate_size_mlp": 112,
        "num_local_experts": 3,
        "moe_layers": [0, 2],
        "no_rope_layers": [1, 0, 1],
        "attention_chunk_size": 13,
        "floor_scale": 8,
        "attn_scale": 0.5,
        **values,
    }
    text = text_config("llama4_text", len(words), **values)
    text.update(bos_token_id=1, eos_token_id=specials.index("<|eot|>"))
    config = hf.Llama4Config(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "vision_output_dim": 40,
            "projector_input_dim": 40,
            "projector_output_dim": 40,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        text_config=text,
        image_token_index=specials.index("<|patch|>"),
        boi_token_index=specials.index("<|image_start|>"),
        eoi_token_index=specials.index("<|image_end|>"),
    )
    model = randomize(hf.Llama4ForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Its image processor cannot be made, let alone saved, without torchvision.
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = {"image_processor_type": "Llama4ImageProcessorFast", "size": size, "max_patches": 4}
    named = {"processor_class": "Llama4Processor", "patch_size": PATCH}
    for name, settings in (("preprocessor", images), ("processor", named)):
        (folder / f"{name}_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


LLAMA4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|header_start|>{{ message['role'] }}"
    "<|header_end|>\n\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header_start|>assistant<|header_end|>\n\n{% endif %}"
)
