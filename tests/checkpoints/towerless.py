"""Small checkpoints without a tower of attention: plain patches, and codes of a codebook."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.checkpoints.parts import SENTENCES, randomize, save, text_config

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
