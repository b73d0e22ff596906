"""Small random checkpoints as Hugging Face folders, made in the test that needs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

IMAGE_SIZE = 28
PATCH = 7
SENTENCES = [
    "What is in this picture? Name three colours of the rainbow.",
    "the quick brown fox jumps over the lazy dog, 0123456789 times",
    "Which picture is taller? Describe the image in one sentence.",
    "system user assistant USER ASSISTANT a chat about images",
] * 8
LLAVA_SPECIALS = ["<pad>", "<s>", "</s>", "<image>"]
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]

INTERNVL_TEMPLATE = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")
# As SmolVLM's own: the role, and a space only before text.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tokenizer(
    specials: list[str],
    *,
    bos: str | None,
    eos: str,
    template: str | None,
    sentences: Sequence[str] = (),
) -> Any:
    """A byte-level BPE tokenizer of about 400 tokens, wrapped for transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*SENTENCES, *sentences], trainer)
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, specials.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=specials[0],
        chat_template=template,
    )


def text_config(model_type: str, vocab_size: int, **values: Any) -> dict[str, Any]:
    """A two-layer decoder of width 64."""
    return {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **values,
    }


def randomize(model: Any, seed: int = 1) -> Any:
    """Weights large enough that greedy tokens vary; the same for the same seed."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.12 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=random) * scale
        if parameter.dim() == 1:
            parameter.data += 1.0
    return model.eval()


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
        vision_config=_tower(tower),
        text_config=text_config(text, **values),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=layer,
    )
    model = randomize(hf.LlavaForConditionalGeneration(config), seed)
    return _save(model, _llava_processor(words, tower, strategy), folder)


def vipllava(folder: Path, *, tower: str = "clip", seed: int = 1, **values: Any) -> Path:
    """A ViP-LLaVA: features of three layers side by side, one of them counted from the start."""
    import transformers as hf

    words = tokenizer(LLAVA_SPECIALS, bos="<s>", eos="</s>", template=None)
    values.setdefault("vocab_size", len(words))
    config = hf.VipLlavaConfig(
        vision_config=_tower(tower),
        text_config=text_config("llama", **values),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        vision_feature_layer=[-2, -3, 1],
    )
    model = randomize(hf.VipLlavaForConditionalGeneration(config), seed)
    return _save(model, _llava_processor(words, tower, "default"), folder)


def _tower(kind: str) -> dict[str, Any]:
    return {
        "model_type": f"{kind}_vision_model",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }


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


def internvl(
    folder: Path,
    *,
    text: str = "qwen2",
    seed: int = 1,
    tied: bool = False,
    tower: dict[str, Any] | None = None,
    feature_layer: int = -1,
    **values: Any,
) -> Path:
    """An InternVL of up to six tiles, four tokens each; ``values`` are the decoder's."""
    import transformers as hf

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=INTERNVL_TEMPLATE)
    words._set_model_specific_special_tokens(named)
    vision = {
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [PATCH, PATCH],
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "attention_bias": True,
        **(tower or {}),
    }
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=text_config(text, len(words), tie_word_embeddings=tied, **values),
        image_token_id=specials.index("<IMG_CONTEXT>"),
        image_seq_length=4,
        vision_feature_layer=feature_layer,
        tie_word_embeddings=tied,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
    )
    model = randomize(hf.InternVLForConditionalGeneration(config), seed)
    settings = {"image_seq_length": 4}
    return _save_parts(model, images, words, folder, InternVLProcessor=settings)


AYA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|START_OF_TURN_TOKEN|>{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant:{% endif %}"
)
COHERE_SPECIALS = ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>"]
COHERE_SPECIALS += ["<|END_OF_TURN_TOKEN|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>"]
COHERE_SPECIALS += ["<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]


def aya_vision(
    folder: Path,
    *,
    text: str = "cohere2",
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    marks: tuple[str, ...] = ("TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))),
    feature_layer: int | list[int] = -1,
    adapter: int | None = None,
    **values: Any,
) -> Path:
    """An Aya Vision of up to six tiles, four tokens each; the names of some are no tokens."""
    import transformers as hf

    specials = [*COHERE_SPECIALS, *marks]
    words = tokenizer(specials, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", template=None)
    values.setdefault("vocab_size", len(words))
    if text == "cohere2":
        layers = ["sliding_attention", "full_attention"]
        values = {"sliding_window": 24, "layer_types": layers, **values}
    config = hf.AyaVisionConfig(
        vision_config=_tower("siglip") | (tower or {}),
        text_config=text_config(text, **{"eos_token_id": 4, **values}),
        image_token_index=specials.index("<|IMG_PATCH|>"),
        vision_feature_layer=feature_layer,
    )
    if adapter is not None:
        config.alignment_intermediate_size = adapter
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
        ),
        tokenizer=words,
        patch_size=PATCH,
        downsample_factor=2,
        img_size=IMAGE_SIZE,
        chat_template=AYA_TEMPLATE,
    )
    model = randomize(hf.AyaVisionForConditionalGeneration(config), seed)
    return _save(model, processor, folder)


def cohere2_vision(folder: Path, *, seed: int = 1, most: int = 6, **values: Any) -> Path:
    """A Command A Vision of four tokens a tile; its image processor would need torchvision."""
    import transformers as hf

    named = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    specials = COHERE_SPECIALS
    template = AYA_TEMPLATE.replace("<image>", "<|IMG_PATCH|>")
    words = tokenizer(specials, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", template=template)
    words._set_model_specific_special_tokens(named)
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    text = {"sliding_window": 24, "layer_types": layers, "num_hidden_layers": 3, **values}
    config = hf.Cohere2VisionConfig(
        vision_config=_tower("siglip"),
        text_config=text_config("cohere2", len(words), **{"eos_token_id": 4, **text}),
        image_token_id=specials.index("<|IMG_PATCH|>"),
        alignment_intermediate_size=72,
    )
    model = randomize(hf.Cohere2VisionForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    images = {
        "image_processor_type": "Cohere2VisionImageProcessorFast",
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "patch_size": 2,
        "max_patches": most,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    settings = {"processor_class": "Cohere2VisionProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


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
        vision_config=_tower("siglip"),
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
    return _save(model, processor, folder)


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
    return _save(model, processor, folder)


GOT_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>"]


def got_ocr2(
    folder: Path,
    *,
    seed: int = 1,
    template: str | None = CHATML.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<img><imgpad></img>\n"
    ),
    tower: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A GOT-OCR 2 of nine tokens a page, its windows not dividing the tower's patches."""
    import transformers as hf

    words = tokenizer(GOT_SPECIALS, bos=None, eos="<|im_end|>", template=None)
    config = hf.GotOcr2Config(
        vision_config={
            "image_size": 54,
            "patch_size": 6,
            "hidden_size": 48,
            "output_channels": 16,
            "mlp_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "window_size": 4,
            "global_attn_indexes": [1],
            **(tower or {}),
        },
        text_config=text_config("qwen2", len(words), **values),
        image_token_index=GOT_SPECIALS.index("<imgpad>"),
        # The processor's own count is a constant, which tests set to this.
        image_seq_length=9,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    processor = hf.GotOcr2Processor(
        image_processor=hf.GotOcr2ImageProcessorPil(size={"height": 54, "width": 54}),
        tokenizer=words,
        chat_template=template,
    )
    model = randomize(hf.GotOcr2ForConditionalGeneration(config), seed)
    return _save(model, processor, folder)


PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def llava_next(
    folder: Path,
    *,
    tower: str = "clip",
    text: str = "mistral",
    seed: int = 1,
    vision_feature_layer: int | list[int] = -2,
    video: bool = False,
    **values: Any,
) -> Path:
    """A LLaVA-NeXT (or its kin for videos) with either tower; ``values`` are the decoder's."""
    import transformers as hf

    specials = ["<pad>", "<s>", "</s>", "<video>", "<image>"]
    words = tokenizer(specials, bos="<s>", eos="</s>", template=None)
    values.setdefault("vocab_size", len(words))
    strategy = "default" if tower == "clip" else "full"
    config = (hf.LlavaNextVideoConfig if video else hf.LlavaNextConfig)(
        vision_config=_tower(tower),
        text_config=text_config(text, **values),
        image_token_index=specials.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy=strategy,
        vision_feature_layer=vision_feature_layer,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE} if tower == "clip" else size,
        crop_size=size,
        image_grid_pinpoints=PINPOINTS,
    )
    settings: dict[str, Any] = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(tower == "clip"),
        "image_token": "<image>",
    }
    if video:
        words.chat_template = LLAVA_TEMPLATE
        model = randomize(hf.LlavaNextVideoForConditionalGeneration(config), seed)
        return _save_parts(model, images, words, folder, LlavaNextVideoProcessor=settings)
    processor = hf.LlavaNextProcessor(
        image_processor=images, tokenizer=words, chat_template=LLAVA_TEMPLATE, **settings
    )
    model = randomize(hf.LlavaNextForConditionalGeneration(config), seed)
    return _save(model, processor, folder)


def granite4_vision(
    folder: Path, *, tower: str = "siglip", rate: str = "1/2", seed: int = 1, **values: Any
) -> Path:
    """A Granite 4 Vision; two of its projectors are for one layer, one is for none."""
    import transformers as hf

    words = tokenizer(LLAVA_SPECIALS, bos="<s>", eos="</s>", template=None)
    values.setdefault("vocab_size", len(words))
    scales = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "logits_scaling": 4.0}
    strategy = "default" if tower == "clip" else "full"
    config = hf.Granite4VisionConfig(
        vision_config=_tower(tower) | {"hidden_size": 128, "num_attention_heads": 2},
        text_config=text_config(
            "granite4_vision_text", **scales, residual_multiplier=0.5, **values
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 96,
            "cross_attention_frequency": 1,
        },
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy=strategy,
        downsample_rate=rate,
        deepstack_layer_map=[[-1, 1], [-3, 0]],
        spatial_target_layers=[1, 9],
        spatial_vision_layer=-2,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.Granite4VisionProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size=size, crop_size=size, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=words,
        chat_template=LLAVA_TEMPLATE,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
        image_token="<image>",
        downsample_rate=rate,
    )
    model = randomize(hf.Granite4VisionForConditionalGeneration(config), seed)
    return _save(model, processor, folder)


def llava_onevision(
    folder: Path, *, tower: str = "siglip", text: str = "qwen2", seed: int = 1, **values: Any
) -> Path:
    """A LLaVA-OneVision whose larger pictures are shrunk; ``values`` are the decoder's."""
    import transformers as hf

    specials = [*QWEN_SPECIALS[:3], "<image>", "<video>"]
    template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=template)
    clip = tower == "clip"
    # Square pictures keep more features than two tiles have.
    pinpoints = [[IMAGE_SIZE * h, IMAGE_SIZE * w] for h in (1, 2, 3) for w in (1, 2, 3)]
    settings: dict[str, Any] = {
        "vision_feature_select_strategy": "default" if clip else "full",
        "vision_aspect_ratio": "anyres_max_2",
    }
    config = hf.LlavaOnevisionConfig(
        vision_config=_tower(tower) | ({} if clip else {"vision_use_head": False}),
        text_config=text_config(text, len(words), **values),
        image_token_index=specials.index("<image>"),
        video_token_index=specials.index("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-2 if clip else -1,
        **settings,
    )
    images = hf.LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=pinpoints
    )
    model = randomize(hf.LlavaOnevisionForConditionalGeneration(config), seed)
    counted = {"num_image_tokens": (IMAGE_SIZE // PATCH) ** 2 + clip}
    return _save_parts(model, images, words, folder, LlavaOnevisionProcessor=settings | counted)


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
    return _save_parts(model, images, words, folder)


def idefics3(
    folder: Path,
    *,
    kind: str = "idefics3",
    split: bool = True,
    longest: int = 2 * IMAGE_SIZE,
    seed: int = 1,
    **values: Any,
) -> Path:
    """An Idefics3 or SmolVLM of four tokens a tile; one tile's mark is no token of its own."""
    import transformers as hf

    specials = [
        "<|endoftext|>",
        "<|im_start|>",
        "<end_of_utterance>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{row}_col_{column}>" for row, column in ((1, 1), (1, 2), (2, 1))),
    ]
    words = tokenizer(specials, bos="<|im_start|>", eos="<end_of_utterance>", template=None)
    values.setdefault("vocab_size", len(words))
    smol = kind == "smolvlm"
    config = (hf.SmolVLMConfig if smol else hf.Idefics3Config)(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
        },
        text_config=text_config("llama", **values),
        image_token_id=specials.index("<image>"),
        scale_factor=2,
    )
    images = (hf.SmolVLMImageProcessorPil if smol else hf.Idefics3ImageProcessorPil)(
        size={"longest_edge": longest},
        max_image_size={"longest_edge": IMAGE_SIZE},
        do_image_splitting=split,
    )
    if not smol:
        processor = hf.Idefics3Processor(
            image_processor=images,
            tokenizer=words,
            image_seq_len=4,
            chat_template=SMOLVLM_TEMPLATE,
        )
        model = hf.Idefics3ForConditionalGeneration(config)
        return _save(randomize(model, seed), processor, folder)
    # Its processor class asks for num2words and a video processor.
    words.chat_template = SMOLVLM_TEMPLATE
    model = hf.SmolVLMForConditionalGeneration(config)
    _save_parts(randomize(model, seed), images, words, folder)
    named = {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


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
    return _save_parts(model, images, words, folder)


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
    return _save_parts(randomize(made(config), seed), images, words, folder)


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


def glm4v(folder: Path, *, seed: int = 1, **values: Any) -> Path:
    """A GLM-4.1V that rotates half of each head."""
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
    config = hf.Glm4vConfig(
        vision_config={
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
    images = hf.Glm4vImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 8 * 14 * 14, "longest_edge": 80 * 14 * 14}
    )
    model = randomize(hf.Glm4vForConditionalGeneration(config), seed)
    return _save_parts(model, images, words, folder)


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
    return _save_parts(model, images, words, folder)


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
        "text_config": text_config("mistral", len(words), **{"head_dim": 20, **values}),
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
    _save_parts(randomize(model, seed), images, words, folder)
    # Its processor class asks for torchvision.
    settings = {"patch_size": patch, "spatial_merge_size": merge}
    settings |= {"processor_class": "PixtralProcessor", "image_token": "[IMG]"}
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _save(model: Any, processor: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _save_parts(model: Any, images: Any, words: Any, folder: Path, **processors: Any) -> Path:
    """Saves a folder part by part; ``processors`` is the processor's class and its settings.

    The class asks for a video processor, which needs torchvision; the folder does not.
    """
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    for name, settings in processors.items():
        text = json.dumps({"processor_class": name, **settings})
        (folder / "processor_config.json").write_text(text, encoding="utf-8")
    return folder


def _bidirectional(name: str, **values: Any) -> Callable[[Path], Path]:
    """A maker of the other file, which builds on this one."""

    def make(folder: Path) -> Path:
        from tests import bidirectional_checkpoints

        made: Path = getattr(bidirectional_checkpoints, name)(folder, **values)
        return made

    return make


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llava-clip-llama": llava,
    "llava-siglip-mistral": lambda folder: llava(
        folder, tower="siglip", text="mistral", head_dim=16, sliding_window=24
    ),
    "llava-next-clip-mistral": llava_next,
    "llava-next-video": lambda folder: llava_next(
        folder, video=True, text="llama", vision_feature_layer=[-2, 0]
    ),
    "llava-onevision": llava_onevision,
    "granite4-vision": granite4_vision,
    "vipllava": vipllava,
    "internvl": internvl,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "qwen3-vl-moe": lambda folder: qwen3_vl(folder, experts=5),
    "glm4v": glm4v,
    "lfm2-vl": lfm2_vl,
    "paddleocr-vl": paddleocr_vl,
    "pixtral": pixtral,
    # transformers fails on a picture of a single merged patch.
    "mistral3": lambda folder: pixtral(folder, merge=2, patch=2),
    "idefics3": idefics3,
    "gemma3": _bidirectional("gemma3"),
    "paligemma": _bidirectional("paligemma"),
    "paligemma2": _bidirectional("paligemma", text="gemma2"),
    "llama4": _bidirectional("llama4"),
    "aya-vision": aya_vision,
    "cohere2-vision": cohere2_vision,
    "deepseek-vl": deepseek_vl,
    "got-ocr2": got_ocr2,
    "janus": janus,
}
