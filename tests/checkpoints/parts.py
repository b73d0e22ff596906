"""What the small checkpoints are made of: words, towers, decoders, weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGE_SIZE = 28


PATCH = 7


SENTENCES = [
    "What is in this picture? Name three colours of the rainbow.",
    "the quick brown fox jumps over the lazy dog, 0123456789 times",
    "Which picture is taller? Describe the image in one sentence.",
    "system user assistant USER ASSISTANT a chat about images",
] * 8


LLAVA_SPECIALS = ["<pad>", "<s>", "</s>", "<image>"]


LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


QWEN_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
]


INTERNVL_TEMPLATE = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n")


# As SmolVLM's own: the role, and a space only before text.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def tokenizer(
    specials: list[str],
    *,
    bos: str | None,
    eos: str,
    template: str | None,
    sentences: Sequence[str] = (),
) -> Any:
    """A byte-level BPE tokenizer of about 400 tokens, wrapped for transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*SENTENCES, *sentences], trainer)
    if bos is not None:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, specials.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=bos,
        eos_token=eos,
        pad_token=specials[0],
        chat_template=template,
    )


def text_config(model_type: str, vocab_size: int, **values: Any) -> dict[str, Any]:
    """A two-layer decoder of width 64."""
    return {
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **values,
    }


def tower_config(kind: str) -> dict[str, Any]:
    return {
        "model_type": f"{kind}_vision_model",
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }


def randomize(model: Any, seed: int = 1) -> Any:
    """Weights large enough that greedy tokens vary; the same for the same seed."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.12 if parameter.dim() > 1 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=random) * scale
        if parameter.dim() == 1:
            parameter.data += 1.0
    return model.eval()


def save(model: Any, processor: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_parts(model: Any, images: Any, words: Any, folder: Path, **processors: Any) -> Path:
    """Saves a folder part by part; ``processors`` is the processor's class and its settings.

    The class asks for a video processor, which needs torchvision; the folder does not.
    """
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    words.save_pretrained(folder)
    for name, settings in processors.items():
        text = json.dumps({"processor_class": name, **settings})
        (folder / "processor_config.json").write_text(text, encoding="utf-8")
    return folder
