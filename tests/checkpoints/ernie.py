"""A small ERNIE 4.5 VL: experts for texts and others for pictures, stored one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import PATCH, randomize, save_parts, text_config, tokenizer

# The end, then image and video with their starts and ends.
SPECIALS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|IMAGE_PLACEHOLDER|>",
    "<|IMAGE_START|>",
    "<|IMAGE_END|>",
    "<|VIDEO_PLACEHOLDER|>",
    "<|VIDEO_START|>",
    "<|VIDEO_END|>",
    "<|end_of_sentence|>",
]
_NAMES = ("image_token", "image_start_token", "image_end_token")
_NAMES += ("video_token", "video_start_token", "video_end_token")
# As the released one's: a picture's number, then its tokens between two marks.
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ 'Picture:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|end_of_sentence|>' if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def ernie4_5_vl_moe(
    folder: Path, *, seed: int = 1, inner: tuple[int, int] = (32, 24), **values: Any
) -> Path:
    """An ERNIE 4.5 VL of five experts of either kind, ``inner`` wide; its first layer has none.

    ``values`` are the decoder's.
    """
    import torch
    import transformers as hf

    words = tokenizer(SPECIALS, bos="<s>", eos="</s>", template=TEMPLATE)
    words._set_model_specific_special_tokens(dict(zip(_NAMES, SPECIALS[3:9], strict=True)))
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    settled = {
        "num_hidden_layers": 3,
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
        "moe_intermediate_size": list(inner),
        "rope_parameters": rotary,
    }
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
        },
        text_config=text_config("ernie4_5_vl_moe_text", len(words), **{**settled, **values}),
        tie_word_embeddings=values.get("tie_word_embeddings", True),
        **{f"{name}_id": SPECIALS.index(words.special_tokens_map[name]) for name in _NAMES},
    )
    images = hf.Ernie4_5_VLMoeImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Ernie4_5_VLMoeForConditionalGeneration(config), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return save_parts(model, images, words, folder, Ernie4_5_VLMoeProcessor={})
