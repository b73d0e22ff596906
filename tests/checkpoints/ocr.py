"""Small checkpoints that read pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import CHATML, QWEN_SPECIALS, randomize, save, text_config, tokenizer
from tests.checkpoints.tiles import GOT_SPECIALS


def lighton_ocr(
    folder: Path,
    *,
    patch: int = 3,
    unit: int = 3,
    merge: int = 2,
    text: str = "qwen3",
    seed: int = 1,
    **values: Any,
) -> Path:
    """A LightOnOCR; sides are rounded to ``unit`` pixels, so patches at an edge may be left."""
    import transformers as hf

    words = tokenizer(QWEN_SPECIALS, bos=None, eos="<|im_end|>", template=None)
    marks = ("image_token", "image_break_token", "image_end_token")
    words._set_model_specific_special_tokens(dict(zip(marks, QWEN_SPECIALS[3:], strict=False)))
    tied = values.get("tie_word_embeddings", True)
    config = hf.LightOnOcrConfig(
        vision_config={
            "model_type": "pixtral",
            "image_size": 20 * patch,
            "patch_size": patch,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
        },
        text_config=text_config(text, len(words), **{"head_dim": 20, **values}),
        image_token_id=QWEN_SPECIALS.index("<|image_pad|>"),
        spatial_merge_size=merge,
        tie_word_embeddings=tied,
    )
    processor = hf.LightOnOcrProcessor(
        image_processor=hf.PixtralImageProcessorPil(
            size={"longest_edge": 20 * patch}, patch_size={"height": unit, "width": unit}
        ),
        tokenizer=words,
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=CHATML,
    )
    model = randomize(hf.LightOnOcrForConditionalGeneration(config), seed)
    return save(model, processor, folder)


def pp_chart2table(
    folder: Path, *, tied: bool = False, seed: int = 1, images: Any = None, **values: Any
) -> Path:
    """A PP-Chart2Table of nine tokens a picture, all of which its template writes."""
    import transformers as hf

    words = tokenizer(GOT_SPECIALS, bos=None, eos="<|im_end|>", template=None)
    config = hf.PPChart2TableConfig(
        vision_config={
            "image_size": 54,
            "patch_size": 6,
            "hidden_size": 48,
            "output_channels": 16,
            "mlp_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "window_size": 4,
            "global_attn_indexes": [1],
        },
        text_config=text_config("qwen2", len(words), **values),
        image_token_index=GOT_SPECIALS.index("<imgpad>"),
        image_seq_length=9,
        tie_word_embeddings=tied,
    )
    picture = f"<img>{9 * '<imgpad>'}</img>\n"
    processor = hf.PPChart2TableProcessor(
        image_processor=hf.PPChart2TableImageProcessorPil(
            size={"height": 54, "width": 54}, **{"do_convert_rgb": True, **(images or {})}
        ),
        tokenizer=words,
        chat_template=CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", picture),
    )
    model = randomize(hf.GotOcr2ForConditionalGeneration(config), seed)
    return save(model, processor, folder)
