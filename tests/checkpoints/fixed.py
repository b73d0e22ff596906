"""Small checkpoints that take pictures of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    IMAGE_SIZE,
    LLAVA_SPECIALS,
    LLAVA_TEMPLATE,
    PATCH,
    randomize,
    save,
    save_parts,
    text_config,
    tokenizer,
    tower_config,
)


def llava(
    folder: Path,
    *,
    tower: str = "clip",
    text: str = "llama",
    seed: int = 1,
    vision_feature_layer: int | list[int] | None = None,
    vision_feature_select_strategy: str | None = None,
    **values: Any,
) -> Path:
    """A LLaVA with a CLIP or SigLIP tower and any text backbone; ``values`` are the decoder's."""
    import transformers as hf

    words = tokenizer(LLAVA_SPECIALS, bos="<s>", eos="</s>", template=None)
    values.setdefault("vocab_size", len(words))
    clip = tower == "clip"
    strategy = vision_feature_select_strategy or ("default" if clip else "full")
    layer = (-2 if clip else -1) if vision_feature_layer is None else vision_feature_layer
    config = hf.LlavaConfig(
        vision_config=tower_config(tower),
        text_config=text_config(text, **values),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    model = randomize(hf.LlavaForConditionalGeneration(config), seed)
    return save(model, _llava_processor(words, tower, strategy), folder)


def vipllava(folder: Path, *, tower: str = "clip", seed: int = 1, **values: Any) -> Path:
    """A ViP-LLaVA: features of three layers side by side, one of them counted from the start."""
    import transformers as hf

    words = tokenizer(LLAVA_SPECIALS, bos="<s>", eos="</s>", template=None)
    values.setdefault("vocab_size", len(words))
    config = hf.VipLlavaConfig(
        vision_config=tower_config(tower),
        text_config=text_config("llama", **values),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        vision_feature_layer=[-2, -3, 1],
    )
    model = randomize(hf.VipLlavaForConditionalGeneration(config), seed)
    return save(model, _llava_processor(words, tower, "default"), folder)


def video_llava(folder: Path, *, seed: int = 1, **values: Any) -> Path:
    """A Video-LLaVA, saved part by part: its processor asks for one of videos."""
    import transformers as hf

    specials = [*LLAVA_SPECIALS, "<video>"]
    words = tokenizer(specials, bos="<s>", eos="</s>", template=LLAVA_TEMPLATE)
    values.setdefault("vocab_size", len(words))
    config = hf.VideoLlavaConfig(
        vision_config=tower_config("clip"),
        text_config=text_config("llama", **values),
        image_token_index=specials.index("<image>"),
        video_token_index=specials.index("<video>"),
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = hf.VideoLlavaImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    model = randomize(hf.VideoLlavaForConditionalGeneration(config), seed)
    settings = {"patch_size": PATCH, "num_additional_image_tokens": 1}
    return save_parts(model, images, words, folder, VideoLlavaProcessor=settings)


def _llava_processor(words: Any, tower: str, strategy: str) -> Any:
    import transformers as hf

    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if tower == "clip":
        images = hf.CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    else:
        images = hf.SiglipImageProcessorPil(size=size)
    return hf.LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
        chat_template=LLAVA_TEMPLATE,
        image_token="<image>",
    )


DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<|User|>: "
    "{% else %}<|Assistant|>: {% endif %}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{{ '\n\n' if message['role'] == 'user' else eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


DEEPSEEK_SPECIALS = ["<pad>", "<bos>", "<eos>", "<image_placeholder>"]
DEEPSEEK_SPECIALS += ["<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]


_JANUS_IMAGES = {
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "min_size": 9,
    "do_convert_rgb": True,
}


def deepseek_vl(folder: Path, *, text: str = "llama", seed: int = 1, **values: Any) -> Path:
    """A DeepSeek-VL of sixteen tokens an image; ``values`` are the decoder's."""
    import transformers as hf

    words = tokenizer(DEEPSEEK_SPECIALS, bos="<bos>", eos="<eos>", template=None)
    words._set_model_specific_special_tokens({"image_token": "<image_placeholder>"})
    config = hf.DeepseekVLConfig(
        vision_config=tower_config("siglip"),
        text_config=text_config(text, len(words), **values),
        image_token_id=DEEPSEEK_SPECIALS.index("<image_placeholder>"),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessorPil(**_JANUS_IMAGES),
        tokenizer=words,
        num_image_tokens=16,
        chat_template=DEEPSEEK_TEMPLATE,
    )
    model = randomize(hf.DeepseekVLForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def deepseek_vl_hybrid(
    folder: Path, *, seed: int = 1, images: dict[str, Any] | None = None, **values: Any
) -> Path:
    """A DeepSeek-VL whose second tower takes pictures of 54 pixels, in windows that do not fit."""
    import transformers as hf

    words = tokenizer(DEEPSEEK_SPECIALS, bos="<bos>", eos="<eos>", template=None)
    words._set_model_specific_special_tokens({"image_token": "<image_placeholder>"})
    config = hf.DeepseekVLHybridConfig(
        vision_config=tower_config("siglip"),
        high_res_vision_config={
            "image_size": 54,
            "patch_size": 6,
            "hidden_size": 48,
            "output_channels": 16,
            "mlp_dim": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "window_size": 4,
            "global_attn_indexes": [1, 3],
        },
        text_config=text_config("llama", len(words), **values),
        image_token_id=DEEPSEEK_SPECIALS.index("<image_placeholder>"),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    settings = {**_JANUS_IMAGES, "high_res_size": {"height": 54, "width": 54}, **(images or {})}
    processor = hf.DeepseekVLHybridProcessor(
        image_processor=hf.DeepseekVLHybridImageProcessorPil(**settings),
        tokenizer=words,
        num_image_tokens=16,
        chat_template=DEEPSEEK_TEMPLATE,
    )
    model = randomize(hf.DeepseekVLHybridForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def janus(
    folder: Path,
    *,
    seed: int = 1,
    system: bool = True,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Janus of sixteen tokens an image, each image between its marks."""
    import transformers as hf

    named = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    words = tokenizer(DEEPSEEK_SPECIALS, bos="<bos>", eos="<eos>", template=None)
    words._set_model_specific_special_tokens(named)
    vision = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_size": 48,
        "mlp_ratio": 1.5,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "projection_dim": 64,
        "num_image_tokens": 16,
        **(tower or {}),
    }
    drawing = {
        "embed_dim": 4,
        "num_embeddings": 8,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    }
    config = hf.JanusConfig(
        vision_config=vision,
        vq_config=drawing,
        text_config=text_config("llama", len(words), **values),
        image_token_id=DEEPSEEK_SPECIALS.index("<image_placeholder>"),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    processor = hf.JanusProcessor(
        image_processor=hf.JanusImageProcessorPil(**_JANUS_IMAGES, **(images or {})),
        tokenizer=words,
        num_image_tokens=16,
        use_default_system_prompt=system,
        chat_template=DEEPSEEK_TEMPLATE,
    )
    model = randomize(hf.JanusForConditionalGeneration(config), seed)
    return save(model, processor, folder)
