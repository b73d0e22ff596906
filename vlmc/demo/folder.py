"""The demo model's architecture, tokenizer and processor, and how they become a model folder."""

import json
from pathlib import Path
from typing import Any

from vlmc.demo.questions import NO_PICTURE, NO_WORD, questions
from vlmc.demo.world import GRID_UNITS, LETTERS, scene

IMAGE_SIDE = GRID_UNITS
PATCH_SIDE = 12
GRID_SIDE = IMAGE_SIDE // PATCH_SIDE
IMAGE_TOKENS = GRID_SIDE**2
CONTEXT = 1024
VOCABULARY = 512

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<image>", "<|system|>", "<|user|>", "<|assistant|>")
PAD, BOS, EOS, IMAGE, SYSTEM, USER, ASSISTANT = range(len(SPECIAL_TOKENS))

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('The roles are system, user and assistant, not ' + message.role) }}
    {%- endif %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {{- '<image>' }}
            {%- elif part.type == 'text' %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

_OTHER_TEXT = (
    "You are a helpful assistant. You answer questions about pictures in a few words.",
    "Hello, how are you? I can look at a picture and tell you what there is to see.",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while.",
)


def build_tokenizer() -> Any:
    """A byte-level BPE `tokenizers.Tokenizer`: any text has ids, words are spelled by letter.

    Its merges come from the world's questions and answers with the pictures' words left out.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    letters = set(LETTERS)
    corpus: list[str] = [NO_PICTURE, NO_WORD]
    for seed in range(2000):
        for asked in questions(scene(seed, split="train", loose=True)):
            corpus.append(asked.question)
            words = asked.answer.rstrip(".").split()
            corpus.append(" ".join(w for w in words if len(w) < 3 or not set(w) <= letters) + ".")
    corpus.extend(_OTHER_TEXT * 20)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def build_processor(tokenizer: Any) -> Any:
    """The `LlavaProcessor`: the middle square of a picture, as `IMAGE_TOKENS` tokens."""
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE},
        crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_model() -> Any:
    """The untrained `LlavaForConditionalGeneration`, in fp32."""
    from transformers import (
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.05,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, do_sample=False, max_new_tokens=64
    )
    return model


def save_folder(model: Any, processor: Any, folder: Path) -> None:
    """Writes the model folder: weights, configs, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    images = json.loads(processor.image_processor.to_json_string())
    text = json.dumps(images, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
