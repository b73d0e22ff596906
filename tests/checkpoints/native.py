"""Small checkpoints that take pictures near their own size."""

from __future__ import annotations

import json
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


def qwen2_vl(folder: Path, *, seed: int = 1, tied: bool = False, **values: Any) -> Path:
    """A Qwen2-VL."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 64,
            "num_heads": 3,
            "patch_size": PATCH,
            "mlp_ratio": 2,
        },
        text_config=text_config("qwen2_vl_text", len(words), rope_parameters=rotary, **values),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=QWEN_SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=QWEN_SPECIALS.index("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Qwen2VLForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder)


def qwen2_5_vl(folder: Path, *, seed: int = 1, window: int = 4) -> Path:
    """A Qwen2.5-VL; few pictures have equal windows of ``window`` x ``window`` patches."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
            "window_size": window * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config("qwen2_5_vl_text", len(words), rope_parameters=rotary),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        vision_start_token_id=QWEN_SPECIALS.index("<|vision_start|>"),
        vision_end_token_id=QWEN_SPECIALS.index("<|vision_end|>"),
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Qwen2_5_VLForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder)


def qwen3_vl(
    folder: Path,
    *,
    seed: int = 1,
    tied: bool = False,
    deepstack: tuple[int, ...] = (0, 2),
    experts: int = 0,
) -> Path:
    """A Qwen3-VL whose decoder adds features in two of its three layers, maybe with experts."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    rotary = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 3, 3],
        "mrope_interleaved": True,
    }
    mixed = {
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
    }
    text = text_config(
        "qwen3_vl_moe_text" if experts else "qwen3_vl_text",
        len(words),
        rope_parameters=rotary,
        num_hidden_layers=3,
        head_dim=20,
        tie_word_embeddings=tied,
        **(mixed if experts else {}),
    )
    config = (hf.Qwen3VLMoeConfig if experts else hf.Qwen3VLConfig)(
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
    made = hf.Qwen3VLMoeForConditionalGeneration if experts else hf.Qwen3VLForConditionalGeneration
    return save_parts(randomize(made(config), seed), images, words, folder)


GLM_SPECIALS = [
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|assistant|>",
    "<|image|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|video|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
]


GLM_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def glm4v(folder: Path, *, kind: str = "Glm4v", seed: int = 1, **values: Any) -> Path:
    """A GLM-4.1V, or a 4.6V (``Glm46V``, ``Glmga``), that rotates half of each head."""
    import transformers as hf

    words = tokenizer(GLM_SPECIALS, bos=None, eos="<|endoftext|>", template=GLM_TEMPLATE)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    rotary["mrope_section"] = [2, 1, 1]
    ends = {"eos_token_id": 0}
    text = text_config("glm4v_text", len(words), rope_parameters=rotary, **ends | values)
    ids = ("image", "image_start", "image_end", "video", "video_start", "video_end")
    named = {
        f"{name}_token_id": GLM_SPECIALS.index(token)
        for name, token in zip(ids, GLM_SPECIALS[5:], strict=True)
    }
    config = getattr(hf, f"{kind}Config")(
        vision_config={
            "model_type": "glm4v_vision",
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_heads": 3,
            "patch_size": PATCH,
            "image_size": 5 * PATCH,
        },
        text_config=text,
        **named,
    )
    images = getattr(hf, f"{kind}ImageProcessorPil")(
        patch_size=PATCH, size={"shortest_edge": 8 * 14 * 14, "longest_edge": 80 * 14 * 14}
    )
    older = kind == "Glm4v"
    named_class = hf.Glm4vForConditionalGeneration if older else hf.Glm46VForConditionalGeneration
    model = randomize(named_class(config), seed)
    # The model type of the last has no processor class of its own.
    given = {"Glm46VProcessor": {}} if kind == "Glmga" else {}
    return save_parts(model, images, words, folder, **given)


def glm_ocr(folder: Path, *, seed: int = 1, **values: Any) -> Path:
    """A GLM-OCR, whose decoder's heads are wider than its width asks for."""
    import transformers as hf

    words = tokenizer(GLM_SPECIALS, bos=None, eos="<|endoftext|>", template=GLM_TEMPLATE)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3]}
    settled = {"eos_token_id": 0, "head_dim": 20, "rope_parameters": rotary}
    ids = ("image", "image_start", "image_end", "video", "video_start", "video_end")
    named = {
        f"{name}_token_id": GLM_SPECIALS.index(token)
        for name, token in zip(ids, GLM_SPECIALS[5:], strict=True)
    }
    config = hf.GlmOcrConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_heads": 3,
            "patch_size": PATCH,
            "image_size": 5 * PATCH,
        },
        text_config=text_config("glm_ocr_text", len(words), **{**settled, **values}),
        **named,
    )
    images = hf.Glm46VImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 8 * 14 * 14, "longest_edge": 80 * 14 * 14}
    )
    model = randomize(hf.GlmOcrForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, Glm46VProcessor={})


def lfm2_vl(folder: Path, *, seed: int = 1, tied: bool = True, **images: Any) -> Path:
    """An LFM2-VL whose first and last layers are convolutions, with up to four tiles."""
    import transformers as hf

    marks = [f"<|img_row_{row}_col_{column}|>" for row in (1, 2, 3) for column in (1, 2, 3)]
    specials = ["<|pad|>", "<|startoftext|>", "<|im_end|>", "<image>", "<|im_start|>"]
    specials += ["<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *marks[:4]]
    template = "{{ bos_token }}" + CHATML.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<image>"
    )
    words = tokenizer(specials, bos="<|startoftext|>", eos="<|im_end|>", template=template)
    kinds = ["conv", "full_attention", "conv", "full_attention", "conv"]
    text = text_config(
        "lfm2",
        len(words),
        num_hidden_layers=5,
        layer_types=kinds,
        block_multiple_of=8,
        tie_word_embeddings=tied,
    )
    config = hf.Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": PATCH,
            "num_patches": 25,
            "vision_use_head": False,
        },
        text_config=text,
        image_token_id=specials.index("<image>"),
        projector_hidden_size=56,
        tie_word_embeddings=tied,
    )
    model = randomize(hf.Lfm2VlForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # Its image processor needs torchvision.
    settings = {
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "processor_class": "Lfm2VlProcessor",
        "encoder_patch_size": PATCH,
        "tile_size": 4 * PATCH,
        "min_image_tokens": 4,
        "max_image_tokens": 8,
        "max_tiles": 4,
        **images,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def paddleocr_vl(folder: Path, *, seed: int = 1, tied: bool = True, **values: Any) -> Path:
    """A PaddleOCR-VL; its tokenizer names the image token."""
    import transformers as hf

    specials = ["<unk>", "<s>", "</s>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"]
    template = (
        "<s>{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' }}"
        "{% else %}{{ 'Assistant: ' }}{% endif %}{% if message['content'] is string %}"
        "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    )
    words = tokenizer(specials, bos="<s>", eos="</s>", template=template)
    words._set_model_specific_special_tokens({"image_token": "<|IMAGE_PLACEHOLDER|>"})
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3]}
    config = hf.PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 5 * PATCH,
            "patch_size": PATCH,
        },
        text_config=text_config(
            "paddleocr_vl_text",
            len(words),
            rope_parameters=rotary,
            **{"head_dim": 20, "tie_word_embeddings": tied, **values},
        ),
        image_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        tie_word_embeddings=tied,
    )
    images = hf.PaddleOCRVLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.PaddleOCRVLForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder)


PIXTRAL_SPECIALS = [
    "<pad>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
]


PIXTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '[IMG]' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '[/INST]' if message['role'] == 'user' else eos_token }}{% endfor %}"
)


def pixtral(
    folder: Path,
    *,
    merge: int = 1,
    patch: int = PATCH,
    layer: int | list[int] = -1,
    text: str = "mistral",
    seed: int = 1,
    **values: Any,
) -> Path:
    """A Pixtral, or with ``merge`` patches a side to a token a Mistral 3."""
    import transformers as hf

    words = tokenizer(PIXTRAL_SPECIALS, bos="<s>", eos="</s>", template=PIXTRAL_TEMPLATE)
    tower = {
        "model_type": "pixtral",
        "image_size": 12 * patch,
        "patch_size": patch,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    given = {
        "vision_config": tower,
        "text_config": text_config(text, len(words), **{"head_dim": 20, **values}),
        "image_token_index": PIXTRAL_SPECIALS.index("[IMG]"),
        "vision_feature_layer": layer,
    }
    if merge > 1:
        config = hf.Mistral3Config(spatial_merge_size=merge, tie_word_embeddings=False, **given)
        model = hf.Mistral3ForConditionalGeneration(config)
    else:
        config = hf.LlavaConfig(vision_feature_select_strategy="full", **given)
        model = hf.LlavaForConditionalGeneration(config)
    images = hf.PixtralImageProcessorPil(
        size={"longest_edge": 12 * patch}, patch_size={"height": patch, "width": patch}
    )
    save_parts(randomize(model, seed), images, words, folder)
    # Its processor class asks for torchvision.
    settings = {"patch_size": patch, "spatial_merge_size": merge}
    settings |= {"processor_class": "PixtralProcessor", "image_token": "[IMG]"}
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
