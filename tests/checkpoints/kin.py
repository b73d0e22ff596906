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
