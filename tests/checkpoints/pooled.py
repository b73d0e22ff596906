"""Small checkpoints whose towers pool their patches into feature rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import PATCH, randomize, save_parts, text_config, tokenizer

GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)


def gemma4(folder: Path, *, seed: int = 1, sounds: bool = False, **values: Any) -> Path:
    """A Gemma 4 of up to 70 tokens a picture, as small ones are; the last two layers share keys.

    Its full layers have another number of key heads, of another size.
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
    kinds = ["sliding_attention", "full_attention"]
    values = {
        "head_dim": 16,
        "global_head_dim": 20,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_hidden_layers": 4,
        "layer_types": kinds * 2,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "sliding_window": 24,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(words),
        "final_logit_softcapping": 8.0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        **values,
    }
    heard = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "output_proj_dims": 16,
        "subsampling_conv_channels": [4, 2],
    }
    config = hf.Gemma4Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "position_embedding_size": 240,
            "use_clipped_linears": True,
            "standardize": True,
        },
        text_config=text_config("gemma4_text", len(words), **values),
        audio_config=heard if sounds else None,
        image_token_id=specials.index("<|image|>"),
        video_token_id=specials.index("<|video|>"),
        audio_token_id=specials.index("<|audio|>"),
        boi_token_id=specials.index("<|image>"),
        eoi_token_id=specials.index("<image|>"),
        boa_token_id=specials.index("<|audio>"),
        eoa_token_index=specials.index("<audio|>"),
    )
    model = randomize(hf.Gemma4ForConditionalGeneration(config), seed)
    tune(model)
    images = hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70)
    return save_parts(model, images, words, folder, Gemma4Processor={"image_seq_length": 70})


def tune(model: Any) -> None:
    """Numbers that are trained but no parameters: factors of layers, bounds, means.

    Queries are made small: nothing else divides the scores, and steep ones multiply any rounding.
    """
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith("q_norm.weight"):
            parameter.data *= 0.25
    random = torch.Generator().manual_seed(7)
    for name, buffer in model.named_buffers():
        bound = {"min": -1.5, "max": 1.5}.get(name[-3:])
        if bound is not None:
            buffer.fill_(bound)
        elif name.endswith(("layer_scalar", "std_bias", "std_scale")):
            buffer.copy_(1 + 0.2 * torch.randn(buffer.shape, generator=random))


MOLMO2_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def molmo2(
    folder: Path,
    *,
    seed: int = 1,
    words_of: tuple[str | None, str] = (None, "<|im_end|>"),
    **given: Any,
) -> Path:
    """A Molmo 2 of up to three crops of 6 x 6 patches, whose embedding goes beyond its head.

    ``words_of`` are its tokenizer's first and last token; ``given`` goes to text, ``images`` and
    ``processor``.
    """
    import transformers as hf

    images, processor = given.pop("images", {}), given.pop("processor", {})
    bos, eos = words_of
    turns = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    marks = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>"]
    marks += ["<|image|>", "<im_low>", "<frame_start>", "<frame_end>", "<|video|>"]
    words = tokenizer(turns, bos=bos, eos=eos, template=MOLMO2_TEMPLATE)
    size = len(words)
    words.add_special_tokens({"additional_special_tokens": marks})
    ids = dict(zip(marks, words.convert_tokens_to_ids(marks), strict=True))
    text = text_config(
        "molmo2_text",
        size,
        **{
            "head_dim": 16,
            "additional_vocab_size": 12,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            **given,
        },
    )
    config = hf.Molmo2Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "head_dim": 16,
            "image_size": [6 * PATCH, 6 * PATCH],
            "patch_size": PATCH,
        },
        adapter_config={
            "vision_feature_layer": [-2, 0],
            "hidden_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "intermediate_size": 56,
            "text_hidden_size": 64,
        },
        text_config=text,
        image_patch_id=ids["<im_patch>"],
        image_start_token_id=ids["<im_start>"],
        image_end_token_id=ids["<im_end>"],
        low_res_image_start_token_id=ids["<low_res_im_start>"],
        frame_start_token_id=ids["<frame_start>"],
        frame_end_token_id=ids["<frame_end>"],
    )
    model = randomize(hf.Molmo2ForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Its image processor cannot be made, let alone saved, without torchvision.
    settings = {
        "image_processor_type": "Molmo2ImageProcessor",
        "size": {"height": 6 * PATCH, "width": 6 * PATCH},
        "patch_size": PATCH,
        "max_crops": 3,
        "overlap_margins": [2, 1],
        "pooling_size": [2, 2],
        **images,
    }
    named = {"processor_class": "Molmo2Processor", **processor}
    for name, content in (("preprocessor", settings), ("processor", named)):
        (folder / f"{name}_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
