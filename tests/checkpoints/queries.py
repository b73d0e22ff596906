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


def instructblip(
    folder: Path,
    *,
    text: str = "llama",
    seed: int = 1,
    queries: int = 5,
    qformer: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """An InstructBLIP of five tokens a picture, whose Q-Former reads the prompt as BERT does."""
    import transformers as hf

    values = {"eos_token_id": 106, **values}
    words = tokenizer(BLIP_SPECIALS, bos="<s>", eos="</s>", template=None)
    reader = bert()
    config = hf.InstructBlipConfig(
        vision_config=_tower(),
        qformer_config=_qformer(vocab_size=len(reader), **(qformer or {})),
        text_config=_decoder(text, len(words), **values),
        num_query_tokens=queries,
        image_token_index=BLIP_SPECIALS.index("<image>"),
    )
    processor = hf.InstructBlipProcessor(_images(), words, reader, num_query_tokens=queries)
    model = varied(hf.InstructBlipForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = BLIP_SPECIALS.index("</s>")
    return save(model, processor, folder)


PAD = 303


def kosmos2(
    folder: Path, *, seed: int = 2, latents: int = 5, tied: bool = False, **values: Any
) -> Path:
    """A KOSMOS-2 of five tokens a picture, the second of which is padding by its id.

    Its files say otherwise what ends an answer, as those of BLIP-2 above.
    """
    import transformers as hf

    specials = ["<s>", "</s>", "<unk>"]
    words = tokenizer(specials, bos="<s>", eos="</s>", template=None)
    # An image's tokens count up from the one behind it.
    words.unk_token = words.convert_ids_to_tokens(PAD - 2)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = hf.CLIPImageProcessorPil(size=side, crop_size=side)
    processor = hf.Kosmos2Processor(images, words, num_patch_index_tokens=9)
    values = {
        "vocab_size": len(words),
        "max_position_embeddings": 2048,
        "embed_dim": 64,
        "layers": 2,
        "ffn_dim": 96,
        "attention_heads": 4,
        "pad_token_id": PAD,
        "bos_token_id": specials.index("<s>"),
        "eos_token_id": 106,
        "tie_word_embeddings": tied,
        **values,
    }
    config = hf.Kosmos2Config(
        text_config=values,
        vision_config=_tower(),
        latent_query_num=latents,
        tie_word_embeddings=tied,
    )
    model = varied(hf.Kosmos2ForConditionalGeneration(config), seed)
    if not tied:
        model.text_model.lm_head.weight.data[PAD] *= 3  # padding is likely in answers too
    model.generation_config.eos_token_id = specials.index("</s>")
    return save(model, processor, folder)


def bert() -> Any:
    """A WordPiece tokenizer of a few dozen pieces, lower case, ``[CLS]`` and ``[SEP]`` around."""
    import transformers as hf

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "what", "is", "in", "picture"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789?.,[]")
    pieces += [*letters, *(f"##{letter}" for letter in letters)]
    made = hf.BertTokenizer(vocab={piece: at for at, piece in enumerate(pieces)})
    made.add_special_tokens({"bos_token": "[DEC]"})
    return made


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
