"""Small tokenizers of every kind, with real-looking templates, as LLaVA and Qwen2-VL folders."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = (
    "What is in the picture? There is a red ball on the table, and a cat beside it.",
    "USER: Describe these images. ASSISTANT: The first one shows a street at night.",
    "You are a helpful assistant.\nIt's a café; they're 3.5 metres apart! (don't ask)",
    "Ein Bild sagt mehr als tausend Worte. L'image est belle. 你好世界。",
)

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_PARTS = """\
{%- macro words(content) -%}
    {%- if content is string -%}
        {{ content }}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}<image>{%- else -%}{{ part.text }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

VICUNA = (
    _PARTS
    + """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{{ words(message.content) | trim }} {% endif -%}
    {%- if message.role == 'user' -%}USER: {{ words(message.content) | trim }} {% endif -%}
    {%- if message.role == 'assistant' -%}
        ASSISTANT: {{ words(message.content) | trim }}{{ eos_token }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}
"""
)

MISTRAL = (
    _PARTS
    + """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
    {%- set system = words(messages[0].content) -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant') -}}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        [INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif -%}
        {{- words(message.content) }} [/INST]
    {%- else -%}
        {{- ' ' + words(message.content) + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
)

CHATML = (
    "{% set image_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def special(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, special=True, normalized=False, **flags)


def byte_level() -> Tokenizer:
    """As Qwen2 and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _sentencepiece_bpe(markup: bool = True) -> Tokenizer:
    """Llama 2's vocabulary in small: specials, bytes, then pieces with their merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    state = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Pieces of markup are words: "</" and "s>" could meet and make a special token.
    words += [piece for piece in (*state["vocab"], "<", "/", ">", "</", "s>") if piece not in words]
    merges = [tuple(pair) for pair in state["merges"]]
    vocabulary = {piece: id for id, piece in enumerate(words)}
    if markup:
        merges += [("<", "/"), ("s", ">"), ("</", "s>")]
    return Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )


def _llama_ends(tokenizer: Tokenizer, normalized: bool = False) -> Tokenizer:
    for text in ("<unk>", "<s>", "</s>"):
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=normalized)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def legacy_llama() -> Tokenizer:
    """Llama 2 and Mistral as first converted: a normalizer writes the spaces."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _llama_ends(tokenizer)


def normalized_llama() -> Tokenizer:
    """Early conversions matched special tokens in the normalized text."""
    tokenizer = _sentencepiece_bpe(markup=False)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _llama_ends(tokenizer, normalized=True)


def metaspace_llama() -> Tokenizer:
    """The same without ``legacy``: only the first word gets a space."""
    tokenizer = _sentencepiece_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    return _llama_ends(tokenizer)


def unigram() -> Tokenizer:
    """T5's kind; its pieces hold the special tokens with the best score, as converted ones do."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    pieces = [piece for piece in pieces if piece[0] != "<unk>"]
    first = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    bytes_ = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*first, *bytes_, *pieces], 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_tokens([special("<unk>"), special("<s>"), special("</s>")])
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


TOKENIZERS = {
    "byte-level": byte_level,
    "legacy-llama": legacy_llama,
    "normalized-llama": normalized_llama,
    "metaspace-llama": metaspace_llama,
    "unigram": unigram,
    "word-level": word_level,
}


def llava_tokenizer(kind: str) -> Tokenizer:
    """One of ``TOKENIZERS`` with LLaVA's special tokens."""
    tokenizer = TOKENIZERS[kind]()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text in ("<unk>", "<s>", "</s>", "<image>", "<pad>"):
        if text not in known:
            tokenizer.add_tokens([special(text)])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def save_llava(folder: Path, tokenizer: Tokenizer, template: str | None, **options: object) -> Path:
    """A LLaVA checkpoint's text side, as its processor saves it."""
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **options})
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=wrapped,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    processor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    return folder


def save_qwen2_vl(folder: Path, template: str | None = CHATML) -> Path:
    """A Qwen2-VL checkpoint's text side."""
    from transformers import Qwen2Tokenizer

    state = json.loads(byte_level().to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        eos_token="<|im_end|>",
        extra_special_tokens=list(QWEN_SPECIAL[1:]),
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def load_qwen2_vl(folder: Path):
    """transformers' processor of that folder; its video side needs torchvision and is left out."""
    from types import SimpleNamespace

    from transformers import AutoTokenizer, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class Processor(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, name, value):
            return type(value)

    template = folder / "chat_template.jinja"
    return Processor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        video_processor=SimpleNamespace(merge_size=2, model_input_names=[]),
        chat_template=template.read_text() if template.is_file() else None,
    )
