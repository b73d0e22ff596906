"""Small checkpoints of models that are near relatives of another family's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    IMAGE_SIZE,
    INTERNVL_TEMPLATE,
    PATCH,
    QWEN_SPECIALS,
    SMOLVLM_TEMPLATE,
    randomize,
    save,
    save_parts,
    text_config,
    tokenizer,
)


def qianfan_ocr(
    folder: Path,
    *,
    text: str = "qwen3",
    seed: int = 1,
    tower: dict[str, Any] | None = None,
    word: str = "<image>",
    named: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Qianfan-OCR of up to six tiles, four tokens each; ``word`` is what its template writes."""
    import transformers as hf

    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks.values()]
    words = tokenizer(specials, bos=None, eos="<|im_end|>", template=None)
    words._set_model_specific_special_tokens(marks)
    config = hf.QianfanOCRConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            **(tower or {}),
        },
        text_config=text_config(text, len(words), **{"head_dim": 24, **values}),
        image_token_id=specials.index("<IMG_CONTEXT>"),
        image_seq_length=4,
        **(named or {}),
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, max_patches=6
    )
    processor = hf.QianfanOCRProcessor(
        image_processor=images,
        tokenizer=words,
        image_seq_length=4,
        image_placeholder_token=word,
        chat_template=INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", word),
    )
    model = randomize(hf.QianfanOCRForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def granite_docling(
    folder: Path,
    *,
    seed: int = 1,
    tied: bool = False,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    named: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Granite Docling of up to six tiles, four tokens each; some tiles' marks are no tokens."""
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
    given = {"embedding_multiplier": 1.5, "logits_scaling": 2.0, "attention_multiplier": 0.3}
    given |= {"residual_multiplier": 0.8, "tie_word_embeddings": tied}
    config = hf.GraniteDoclingConfig(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "out_hidden_size": values.get("hidden_size", 64),
            "scale_factor": 2,
            "deepstack_visual_indexes": [0, 2],
            **(tower or {}),
        },
        text_config=text_config("granite_docling_text", len(words), **given | values),
        image_token_id=specials.index("<image>"),
        pad_token_id=0,
        tie_word_embeddings=tied,
        **(named or {}),
    )
    processor = hf.GraniteDoclingProcessor(
        image_processor=hf.GraniteDoclingImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, **{"max_patches": 6, **(images or {})}
        ),
        tokenizer=words,
        image_seq_len=4,
        chat_template=SMOLVLM_TEMPLATE,
    )
    model = randomize(hf.GraniteDoclingForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def exaone4_5(
    folder: Path, *, text: str = "exaone4", seed: int = 1, tied: bool = False, **values: Any
) -> Path:
    """An EXAONE 4.5 whose last layer has neither window nor positions."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    layers = {"num_hidden_layers": 3, "sliding_window": 24, "layer_types": kinds}
    given = (layers if text == "exaone4" else {}) | {"tie_word_embeddings": tied, **values}
    config = hf.Exaone4_5_Config(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_heads": 4,
            "num_key_value_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": given.get("hidden_size", 64),
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config(text, len(words), **given),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
        tie_word_embeddings=tied,
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, min_pixels=4 * (2 * PATCH) ** 2, max_pixels=24 * (2 * PATCH) ** 2
    )
    model = randomize(hf.Exaone4_5_ForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, Exaone4_5_Processor={})


def video_llama_3(
    folder: Path,
    *,
    text: str = "qwen2",
    seed: int = 3,
    merge: int = 1,
    patch: int = PATCH,
    **values: Any,
) -> Path:
    """A Video-LLaMA 3, whose pictures' patches its image processor may have merged."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    config = hf.VideoLlama3Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": patch,
        },
        text_config=text_config(text, len(words), **values),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        video_token_id=QWEN_SPECIALS.index("<|video_pad|>"),
    )
    images = hf.VideoLlama3ImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        size={"shortest_edge": 4 * 14 * 14, "longest_edge": 12 * 14 * 14},
    )
    model = randomize(hf.VideoLlama3ForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, VideoLlama3Processor={})


COMPASS_SPECIALS = ["<PAD>", "<BOS_TOKEN>", "<|im_start|>", "<|im_end|>"]
COMPASS_SPECIALS += ["<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>"]


def cohere_compass(
    folder: Path,
    *,
    seed: int = 1,
    tied: bool = False,
    tower: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Cohere Compass whose last layer has neither window nor positions."""
    import transformers as hf

    template = CHATML.replace("vision_start", "VISION_START").replace("vision_end", "VISION_END")
    template = template.replace("image_pad", "IMAGE_PAD")
    words = tokenizer(COMPASS_SPECIALS, bos="<BOS_TOKEN>", eos="<|im_end|>", template=template)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    given = {
        "num_hidden_layers": 3,
        "sliding_window": 24,
        "layer_types": kinds,
        "logit_scale": 0.5,
        "rope_parameters": {"sliding_attention": rotary, "full_attention": None},
        "eos_token_id": 3,
        "tie_word_embeddings": tied,
    }
    names = ("vision_start", "vision_end", "image", "video")
    ids = zip(names, COMPASS_SPECIALS[4:], strict=True)
    config = hf.CohereCompassConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": values.get("hidden_size", 64),
            "intermediate_size": 72,
            "num_heads": 3,
            "patch_size": PATCH,
            "num_position_embeddings": 25,
            "deepstack_visual_indexes": [0, 2],
            **(tower or {}),
        },
        text_config=text_config("cohere_compass_text", len(words), **given | values),
        tie_word_embeddings=tied,
        **{f"{name}_token_id": COMPASS_SPECIALS.index(token) for name, token in ids},
    )
    images = hf.CohereCompassImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.CohereCompassForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, CohereCompassProcessor={})


def lfm3_vl(
    folder: Path, *, seed: int = 1, tied: bool = False, kernel: int = 3, **values: Any
) -> Path:
    """An LFM3-VL of every kind of layer, in tower and decoder."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=CHATML)
    kinds = ["conv", "sliding_attention", "full_attention", "conv"]
    given = {
        "num_hidden_layers": 4,
        "layer_types": kinds,
        "sliding_window": 24,
        "head_dim": 20,
        "tie_word_embeddings": tied,
        **values,
    }
    names = ("image", "video", "vision_start", "vision_end")
    ids = zip(names, QWEN_SPECIALS[3:], strict=True)
    config = hf.Lfm3VlConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention", "conv"],
            "conv_kernel_size": kernel,
            "patch_size": PATCH,
        },
        text_config=text_config("lfm3", len(words), **given),
        projector_hidden_size=56,
        tie_word_embeddings=tied,
        **{f"{name}_token_id": QWEN_SPECIALS.index(token) for name, token in ids},
    )
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 4 * 14 * 14, "longest_edge": 40 * 14 * 14}
    )
    model = randomize(hf.Lfm3VlForConditionalGeneration(config), seed)
    return save_parts(model, images, words, folder, Lfm3VlProcessor={})
