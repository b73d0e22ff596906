"""Small checkpoints of Ovis 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    CHATML,
    IMAGE_SIZE,
    PATCH,
    randomize,
    save,
    text_config,
    tokenizer,
)

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<IMG_ATOM>", "<IMG_START>"]
SPECIALS += ["<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
TEMPLATE = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
SIDE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def ovis2(
    folder: Path,
    *,
    text: str = "qwen2",
    seed: int = 1,
    tied: bool = False,
    tower: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    specials: tuple[str, ...] = (),
    template: str | None = TEMPLATE,
    **values: Any,
) -> Path:
    """An Ovis 2 of up to six tiles, four tokens each.

    ``values`` are the decoder's; the image's placeholder is a token only as one of ``specials``.
    """
    import transformers as hf

    words = tokenizer([*SPECIALS, *specials], bos=None, eos="<|im_end|>", template=None)
    values.setdefault("vocab_size", len(words))
    config = hf.Ovis2Config(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "vocab_size": 61,
            "hidden_stride": 2,
            "qkv_bias": True,
            **(tower or {}),
        },
        text_config=text_config(text, **values, tie_word_embeddings=tied),
        image_token_id=SPECIALS.index("<IMG_ATOM>"),
        visual_indicator_token_ids=list(range(SPECIALS.index("<IMG_START>"), len(SPECIALS))),
        hidden_size=64,
        vocab_size=values["vocab_size"],
        tie_word_embeddings=tied,
    )
    given = {"size": SIDE, "crop_to_patches": True, "max_patches": 6}
    processor = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessorPil(**given | (images or {})),
        tokenizer=words,
        image_seq_length=4,
        chat_template=template,
    )
    return save(randomize(hf.Ovis2ForConditionalGeneration(config), seed), processor, folder)
