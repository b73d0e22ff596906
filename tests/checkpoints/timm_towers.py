"""Small checkpoints whose towers are those of the package timm, which no test needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    LLAVA_SPECIALS,
    LLAVA_TEMPLATE,
    QWEN_SPECIALS,
    randomize,
    save,
    text_config,
    tokenizer,
)
from vlmc.passes.timm_towers import own_towers

FASTVIT = {"layers": [1, 2, 1, 1, 2], "embed_dims": [8, 16, 16, 32, 64], "inference_mode": True}


def fast_vlm(
    folder: Path,
    *,
    seed: int = 1,
    architecture: str = "fastvit_mci3",
    tower: dict[str, Any] | None = None,
    cell: int = 64,
    template: str | None = LLAVA_TEMPLATE,
    text: str = "qwen2",
    **values: Any,
) -> Path:
    """A FastVLM of six tokens an image, in two rows of three.

    Args:
        folder: Where to.
        seed: Of its weights.
        architecture: As timm calls the tower.
        tower: Its ``model_args``.
        cell: Side of the square that one token stands for, in pixels.
        template: The chat template.
        text: Kind of the decoder.
        values: Of the decoder.
    """
    import transformers as hf

    from vlmc.families.timm_modules import stored_tower

    args = FASTVIT if tower is None else tower
    vision = {
        "model_type": "timm_wrapper",
        "architecture": architecture,
        "hidden_size": int(args["embed_dims"][-1] * args.get("cls_ratio", 2.0)),
        "model_args": args,
    }
    words = tokenizer(LLAVA_SPECIALS, bos=None, eos="</s>", template=None)
    config = hf.FastVlmConfig(
        vision_config=vision,
        text_config=text_config(text, len(words), **values),
        image_token_index=LLAVA_SPECIALS.index("<image>"),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(
            size={"shortest_edge": 2 * cell},
            crop_size={"height": 2 * cell, "width": 3 * cell},
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
        ),
        tokenizer=words,
        patch_size=cell,
        chat_template=template,
        image_token="<image>",
    )
    with own_towers(stored_tower):
        model = randomize(hf.FastVlmForConditionalGeneration(config), seed)
    return save(trained(model, seed), processor, folder)


def trained(model: Any, seed: int) -> Any:
    """What normalized channels were like while a tower was trained: unlike nothing."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=random) * 0.3)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=random) + 0.5)
    return model


def perception_lm(
    folder: Path,
    *,
    seed: int = 1,
    architecture: str = "vit_pe_core_large_patch14_336",
    tower: dict[str, Any] | None = None,
    pooling: int = 2,
    images: dict[str, Any] | None = None,
    text: str = "llama",
    **values: Any,
) -> Path:
    """A Perception LM of four tokens a tile, of which the whole picture is one.

    Args:
        folder: Where to.
        seed: Of its weights.
        architecture: As timm calls the tower.
        tower: More of its ``model_args``.
        pooling: How many rows of patches become one.
        images: More of the image processor's settings.
        text: Kind of the decoder.
        values: Of the decoder.
    """
    import transformers as hf

    from vlmc.families.timm_modules import stored_tower

    args = {
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "patch_size": 7,
        "img_size": [28, 28],
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [6, 6],
        **(tower or {}),
    }
    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    words._set_model_specific_special_tokens(named)
    config = hf.PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": architecture,
            "model_args": args,
        },
        text_config=text_config(text, len(words), **values),
        vision_use_cls_token=args.get("class_token", True),
        projector_pooling_ratio=pooling,
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
    )
    with own_towers(stored_tower):
        model = randomize(hf.PerceptionLMForConditionalGeneration(config), seed)
    settings = {
        "image_processor_type": "PerceptionLMImageProcessorFast",
        "tile_size": args["img_size"][0],
        "max_num_tiles": 6,
        **(images or {}),
    }
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    named_files = {
        "preprocessor_config.json": settings,
        "processor_config.json": {
            "processor_class": "PerceptionLMProcessor",
            "patch_size": args["patch_size"],
            "pooling_ratio": pooling,
        },
    }
    for name, content in named_files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
