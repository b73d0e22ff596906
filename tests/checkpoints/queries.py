"""Small checkpoints whose pictures are read by queries: a Q-Former, or latent ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.parts import IMAGE_SIZE, PATCH, randomize, save, text_config, tokenizer

BLIP_SPECIALS = ["<pad>", "<s>", "</s>", "<image>"]


def blip_2(
    folder: Path,
    *,
    text: str = "opt",
    seed: int = 1,
    queries: int = 5,
    qformer: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A BLIP-2 of five tokens a picture; ``values`` are the decoder's, an OPT or another.

    The file that says how to generate names another end token than the decoder does, which counts.
    """
    import transformers as hf

    values = {"eos_token_id": 106, **values}
    words = tokenizer(BLIP_SPECIALS, bos="<s>", eos="</s>", template=None)
    config = hf.Blip2Config(
        vision_config=_tower(**(tower or {})),
        qformer_config=_qformer(**(qformer or {})),
        text_config=_decoder(text, len(words), **values),
        num_query_tokens=queries,
        image_token_index=BLIP_SPECIALS.index("<image>"),
    )
    processor = hf.Blip2Processor(_images(), words, num_query_tokens=queries)
    model = varied(hf.Blip2ForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = BLIP_SPECIALS.index("</s>")
    return save(model, processor, folder)


def varied(model: Any, seed: int) -> Any:
    """Random weights, biases around zero: one of ones would decide every token by itself."""
    for name, parameter in randomize(model, seed).named_parameters():
        if name.endswith("bias"):
            parameter.data -= 1.0
    return model


def _tower(**values: Any) -> dict[str, Any]:
    return {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        **values,
    }


def _qformer(**values: Any) -> dict[str, Any]:
    return {
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        **values,
    }


def _decoder(kind: str, vocab_size: int, **values: Any) -> dict[str, Any]:
    """OPT has names of its own for some sizes."""
    if kind != "opt":
        return text_config(kind, vocab_size, **values)
    common = text_config(kind, vocab_size)
    del common["num_key_value_heads"], common["intermediate_size"]
    return {**common, "ffn_dim": 96, "word_embed_proj_dim": 64, **values}


def _images() -> Any:
    import transformers as hf

    return hf.BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
