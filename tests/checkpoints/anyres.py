"""Small checkpoints whose tiles are unpadded and packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    IMAGE_SIZE,
    LLAVA_SPECIALS,
    LLAVA_TEMPLATE,
    PATCH,
    QWEN_SPECIALS,
    randomize,
    save,
    save_parts,
    text_config,
    tokenizer,
    tower_config,
)

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
        vision_config=tower_config(tower),
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
        return save_parts(model, images, words, folder, LlavaNextVideoProcessor=settings)
    processor = hf.LlavaNextProcessor(
        image_processor=images, tokenizer=words, chat_template=LLAVA_TEMPLATE, **settings
    )
    model = randomize(hf.LlavaNextForConditionalGeneration(config), seed)
    return save(model, processor, folder)


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
        vision_config=tower_config(tower) | {"hidden_size": 128, "num_attention_heads": 2},
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
    return save(model, processor, folder)


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
        vision_config=tower_config(tower) | ({} if clip else {"vision_use_head": False}),
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
    return save_parts(model, images, words, folder, LlavaOnevisionProcessor=settings | counted)
