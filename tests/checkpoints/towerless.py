"""Small checkpoints without a tower of attention: plain patches, and codes of a codebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import SENTENCES, randomize, save, text_config, tokenizer

FUYU_WORDS = ["|SPEAKER|", "|NEWLINE|", "<0x04>"]


def unigram(specials: list[str], words: list[str]) -> Any:
    """A SentencePiece-like tokenizer, wrapped for transformers; ``words`` are no added tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=[*specials, *words],
        unk_token=specials[0],
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in words]
    made = Tokenizer.from_str(json.dumps(data))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", specials.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token=specials[0]
    )


def centred(model: Any, seed: int) -> Any:
    """Random weights as ``randomize`` makes them, its biases around zero."""
    made = randomize(model, seed)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            parameter.data -= 1.0
    return made


def fuyu(
    folder: Path,
    *,
    seed: int = 1,
    text: str = "persimmon",
    template: str | None = None,
    images: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Fuyu with patches of 8 pixels on a canvas of 32 x 64, smaller than most pictures."""
    import transformers as hf

    words = unigram(["<unk>", "<s>", "</s>"], FUYU_WORDS)
    # Persimmon has a head of keys for each of queries, whatever its configuration says.
    config = hf.FuyuConfig(
        text_config=text_config(text, len(words), **values),
        patch_size=8,
        image_size=32,
        image_token_id=words.convert_tokens_to_ids("|SPEAKER|"),
    )
    sizes = {"size": {"height": 32, "width": 64}, "patch_size": {"height": 8, "width": 8}}
    # Of its own accord it converts nothing, and takes pictures in RGB alone.
    settings = {**sizes, "do_convert_rgb": True, **(images or {})}
    processor = hf.FuyuProcessor(hf.FuyuImageProcessorPil(**settings), words)
    processor.chat_template = template
    return save(centred(hf.FuyuForCausalLM(config), seed), processor, folder)


CODES = 40


def chameleon(
    folder: Path,
    *,
    seed: int = 1,
    template: str | None = None,
    named: dict[str, str] | None = None,
    codebook: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    **values: Any,
) -> Path:
    """A Chameleon of 20 codes a picture, their tokens in no order and in two places.

    ``named`` are tokens that the tokenizer has under a name: those around a picture, and the one
    that ends a turn.
    """
    import transformers as hf

    marks = ["<racm3:break>", "<eoss>", "<reserved08706>", "<image>"]
    digits = [str(code * 7 % CODES).translate(_LETTERS) for code in range(CODES)]
    codes = [f"IMGIMG{code}Z" for code in digits]
    specials = ["<unk>", "<s>", "</s>", *codes[:25], *marks, *codes[25:]]
    words = tokenizer(specials, bos="<s>", eos="</s>", template=template)
    named = {"sep_token": "<reserved08706>"} if named is None else named
    if "sep_token" in named:
        words.sep_token = named["sep_token"]
    words._set_model_specific_special_tokens({k: v for k, v in named.items() if k != "sep_token"})
    text = text_config("chameleon", len(words), **values)
    config = hf.ChameleonConfig(
        **text,
        vocabulary_map=words.get_vocab(),
        vq_config={
            "embed_dim": 12,
            "num_embeddings": CODES,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 2, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [8],
            **(codebook or {}),
        },
    )
    sizes = {"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 20}}
    processor = hf.ChameleonProcessor(
        hf.ChameleonImageProcessorPil(**{**sizes, **(images or {})}), words, image_seq_length=20
    )
    processor.chat_template = template
    model = centred(hf.ChameleonForConditionalGeneration(config), seed)
    return save(model, processor, folder)


_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
