"""Small checkpoints of Idefics2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import (
    IMAGE_SIZE,
    PATCH,
    SMOLVLM_TEMPLATE,
    randomize,
    save,
    text_config,
    tokenizer,
)

SPECIALS = ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>"]
TEMPLATE = SMOLVLM_TEMPLATE.replace("<|im_start|>", "")


def idefics2(
    folder: Path,
    *,
    text: str = "mistral",
    seed: int = 1,
    split: bool = False,
    tower: dict[str, Any] | None = None,
    perceiver: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    named: dict[str, str] | None = None,
    template: str | None = TEMPLATE,
    **values: Any,
) -> Path:
    """An Idefics2 of three tokens a part; sides of pictures need not divide into patches.

    ``values`` are the decoder's; ``named`` are tokens that the tokenizer has a name for.
    """
    import transformers as hf

    specials = [*SPECIALS, *(named or {}).values()]
    words = tokenizer(specials, bos="<s>", eos="</s>", template=None)
    if named:
        words._set_model_specific_special_tokens({"image_token": "<image>", **named})
    values.setdefault("vocab_size", len(words))
    if text == "mistral":
        values.setdefault("sliding_window", 24)
    config = hf.Idefics2Config(
        vision_config={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            **(tower or {}),
        },
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 3,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 12,
            "num_key_value_heads": 2,
            **(perceiver or {}),
        },
        text_config=text_config(text, **values),
        image_token_id=SPECIALS.index("<image>"),
        tie_word_embeddings=values.get("tie_word_embeddings", False),
    )
    size = {"size": {"shortest_edge": 24, "longest_edge": 60}}
    processor = hf.Idefics2Processor(
        image_processor=hf.Idefics2ImageProcessorPil(
            **{**size, "do_image_splitting": split, **(images or {})}
        ),
        tokenizer=words,
        image_seq_len=3,
        chat_template=template,
    )
    return save(randomize(hf.Idefics2ForConditionalGeneration(config), seed), processor, folder)
