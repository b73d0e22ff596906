"""A tokenizer as large as a real model's, made on the spot: loading one is part of a cold start."""

from __future__ import annotations

import random
from typing import Any

LONGEST = 10  # bytes of a token


def tokenizer(size: int, specials: list[str], *, bos: str | None, eos: str, template: str) -> Any:
    """Byte-level BPE of exactly ``size`` tokens, wrapped for transformers.

    Its merges are random pairs, so that text of any kind is cut the same way by every engine.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate([*specials, *alphabet])}
    words, merges = list(alphabet), []
    chance = random.Random(0)
    while len(vocabulary) < size:
        left, right = chance.choice(words), chance.choice(words)
        word = left + right
        if len(word) <= LONGEST and word not in vocabulary:
            vocabulary[word] = len(vocabulary)
            words.append(word)
            merges.append((left, right))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True) for word in specials])
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=specials[0],
        chat_template=template,
    )
