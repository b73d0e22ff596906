"""What transformers' ``AutoTokenizer`` makes of a folder's tokenizer files, without it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from vlmc.errors import VlmcError, need
from vlmc.families.special_tokens import NAMED_TOKENS, Token, content, read_special_tokens
from vlmc.schema import Json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json with merges.txt")

# transformers' TOKENIZER_MAPPING_NAMES and MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS, for the
# model types resolved here. Others are left to transformers itself.
_REGISTERED = {
    "fuyu": "TokenizersBackend",
    "llava": "TokenizersBackend",
    "llava_next": "TokenizersBackend",
    "qwen2_5_vl": "Qwen2Tokenizer",
    "qwen2_vl": "Qwen2Tokenizer",
}
# Whatever class their files name.
_ALWAYS_REGISTERED = ("fuyu", "llava", "llava_next")
_BACKENDS = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")

_SAVE = (
    "where the packages it asks for are installed, AutoTokenizer.from_pretrained(folder)"
    ".save_pretrained(folder) writes the tokenizer.json that is read here"
)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer as ``AutoTokenizer`` has it in memory.

    Attributes:
        tokenizer: The backend, truncation and padding off.
        special_tokens: transformers' ``special_tokens_map``: what templates see.
        clean_up_tokenization_spaces: Its flag for decoding.
    """

    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    clean_up_tokenization_spaces: bool


def load_tokenizer(folder: Path, config: Json, tokenizer_config: Json) -> LoadedTokenizer:
    """Read a folder's tokenizer as ``AutoTokenizer`` does.

    ``tokenizer.json`` is read here for the classes this module knows (the plain backend,
    ``LlamaTokenizer``, ``Qwen2Tokenizer``); any other class, and folders without that file, are
    converted by transformers, where it is installed.

    Raises:
        VlmcError: No tokenizer, one that only transformers can read, or one it cannot read.
    """
    if tokenizer_config.get("split_special_tokens"):
        raise VlmcError(
            "tokenizers with split_special_tokens read no special token, not even a template's",
            at=f"{folder.name}/tokenizer_config.json",
        )
    path = folder / "tokenizer.json"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        build = _BUILDERS.get(_class_name(text, config, tokenizer_config))
        if build is not None and not tokenizer_config.get("fix_mistral_regex"):
            return _load(folder, text, tokenizer_config, build)
    elif not _has_vocabulary(folder):
        raise VlmcError("no tokenizer in the model folder", at=folder.name, allowed=TOKENIZER_FILES)
    return _load_with_transformers(folder)


def _has_vocabulary(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.model").is_file()


def _class_name(text: str, config: Json, tokenizer_config: Json) -> str:
    """The class ``AutoTokenizer`` picks; a name of ``_BUILDERS``, or another one."""
    model_type = str(config.get("model_type"))
    registered = _REGISTERED.get(model_type)
    if registered is None:
        return "unknown"
    declared = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(declared, str) or model_type in _ALWAYS_REGISTERED:
        return registered
    name = declared.removesuffix("Fast")
    if name == "LlamaTokenizer" and '"ByteLevel"' in text:
        return "TokenizersBackend"
    return "TokenizersBackend" if name in _BACKENDS else name


@dataclass(frozen=True)
class _Built:
    tokenizer: Tokenizer
    defaults: dict[str, str]  # special tokens of the class, where the configuration names none
    adds_its_own: bool = False  # Qwen2Tokenizer adds its special tokens once more


def _backend(text: str, config: Json) -> _Built:
    return _Built(Tokenizer.from_str(text), {})


def _llama(text: str, config: Json) -> _Built:
    """``LlamaTokenizer``: vocabulary and merges are the file's, the pipeline is the class's own."""
    data = json.loads(text)
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    tokenizer = Tokenizer(
        models.BPE(**_words(data), fuse_unk=True, byte_fallback=True, dropout=None)
    )
    scheme = ("always" if config.get("legacy", False) else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if prefix else steps
    )
    _keep_ends(tokenizer, data)
    return _Built(tokenizer, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})


def _qwen2(text: str, config: Json) -> _Built:
    """``Qwen2Tokenizer``: vocabulary and merges are the file's, the pipeline is the class's own."""
    data = json.loads(text)
    tokenizer = Tokenizer(
        models.BPE(
            **_words(data),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
            byte_fallback=False,
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    prefix = bool(config.get("add_prefix_space"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    _keep_ends(tokenizer, data)
    end = "<|endoftext|>"
    named = {"unk_token": end, "eos_token": end, "pad_token": end}
    return _Built(tokenizer, named, adds_its_own=True)


_BUILDERS: dict[str, Callable[[str, Json], _Built]] = {
    "TokenizersBackend": _backend,
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
}


def _words(data: dict[str, Any]) -> dict[str, Any]:
    model = data["model"]
    if model.get("type") != "BPE":
        raise VlmcError(f"this tokenizer class is a BPE, the file holds {model.get('type')}")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in pairs]}


def _keep_ends(tokenizer: Tokenizer, data: dict[str, Any]) -> None:
    """The post-processor, and the padding that names a token, are the file's."""
    bare = {**data, "model": {**data["model"], "vocab": {}, "merges": []}, "added_tokens": []}
    file = Tokenizer.from_str(json.dumps(bare))
    if file.post_processor is not None:
        tokenizer.post_processor = file.post_processor
    if file.padding is not None:
        tokenizer.enable_padding(**file.padding)


def _load(
    folder: Path, text: str, config: Json, build: Callable[[str, Json], _Built]
) -> LoadedTokenizer:
    at = f"{folder.name}/tokenizer.json"
    try:
        built = build(text, config)
    except VlmcError as error:
        raise error.located(at) from error
    except Exception as error:  # the library has no narrower type
        raise VlmcError(f"this is not a tokenizer: {error}", at=at) from error
    tokenizer = built.tokenizer
    tokens = read_special_tokens(folder, text, config)
    named: dict[str, Token | None] = {**built.defaults, **tokens.named}
    if tokenizer.padding is not None:
        named.setdefault("pad_token", tokenizer.padding["pad_token"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {key: value for key, value in named.items() if value is not None}
    _add_tokens(tokenizer, tokens.added, special, tokens.extra)
    if tokenizer.post_processor is None:
        tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1")
    order = [*NAMED_TOKENS, *(key for key in special if key not in NAMED_TOKENS)]
    names = {key: content(special[key]) for key in order if key in special}
    if built.adds_its_own:
        every = dict.fromkeys([*names.values(), *map(content, tokens.extra)])
        tokenizer.add_tokens([AddedToken(text, special=True) for text in every])
    return LoadedTokenizer(tokenizer, names, bool(config.get("clean_up_tokenization_spaces")))


def _add_tokens(
    tokenizer: Tokenizer,
    added: dict[int, AddedToken],
    special: dict[str, Token],
    extra: list[Token],
) -> None:
    """``TokenizersBackend.__init__``: tokens that the configuration has and the file lacks."""
    known = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    known += [token.content for token in added.values()]
    tokens: list[Token] = [added[id] for id in sorted(added)]
    for token in [*special.values(), *extra]:
        if content(token) not in known and token not in tokens:
            tokens.append(token)
    names = [content(token) for token in special.values()]
    ready = []
    for token in tokens:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif not token.special and token.content in names:
            token.special = True
        ready.append(token)
    if ready:
        tokenizer.add_tokens(ready)


def _load_with_transformers(folder: Path) -> LoadedTokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise need("transformers", "build").located(f"{folder.name}: tokenizer") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ImportError, OSError, ValueError) as error:
        problem = f"transformers cannot read this tokenizer: {error}"
        raise VlmcError(problem, at=folder.name, hint=_SAVE) from error
    backend = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        problem = f"{type(tokenizer).__name__} runs in Python: only tokenizers of the "
        raise VlmcError(f"{problem}tokenizers library can be bundled", at=folder.name)
    backend.no_truncation()
    backend.no_padding()
    names = dict(tokenizer.special_tokens_map)
    return LoadedTokenizer(backend, names, bool(tokenizer.clean_up_tokenization_spaces))
