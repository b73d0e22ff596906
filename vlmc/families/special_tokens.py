"""The special tokens a checkpoint's configuration names, as transformers reads them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from vlmc.errors import VlmcError
from vlmc.schema import Json

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

Token = str | AddedToken

_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class SpecialTokens:
    """What ``PreTrainedTokenizerBase`` is told of tokens.

    Attributes:
        named: Tokens by name (``bos_token``, ``image_token``, ...); None where the configuration
            says there is none.
        extra: Special tokens without a name.
        added: Tokens that the tokenizer is given, by id.
    """

    named: dict[str, Token | None]
    extra: list[Token]
    added: dict[int, AddedToken]


def read_object(path: Path) -> Json:
    """A JSON file that holds an object; empty where there is no such file.

    Raises:
        VlmcError: It holds something else.
    """
    at = f"{path.parent.name}/{path.name}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise VlmcError(f"the file cannot be read: {error}", at=at) from error
    if not isinstance(value, dict):
        raise VlmcError("an object is needed", at=at)
    return value


def content(token: Token) -> str:
    """A token's text."""
    return token if isinstance(token, str) else token.content


def read_special_tokens(folder: Path, tokenizer_json: str, config: Json) -> SpecialTokens:
    """Mirror of ``PreTrainedTokenizerBase._from_pretrained``.

    Args:
        folder: The checkpoint; ``special_tokens_map.json`` and ``added_tokens.json`` count only
            where ``tokenizer_config.json`` has no ``added_tokens_decoder``.
        tokenizer_json: The text of ``tokenizer.json``.
        config: ``tokenizer_config.json``.

    Raises:
        VlmcError: A token is neither text nor a description of one.
    """
    at = f"{folder.name}/tokenizer_config.json"
    values = dict(config)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    model_specific: Json = {}
    for key in list(values):
        if _is_model_specific(key, values[key]):
            model_specific[key] = values.pop(key)
    _move_named(values, model_specific)
    added: dict[int, AddedToken] = {}
    if isinstance(decoder := values.get("added_tokens_decoder"), dict):
        added = {int(id): _added(token, at) for id, token in decoder.items()}
    else:
        _legacy(folder, tokenizer_json, values, model_specific, added)
    by_content = {token.content: token for token in added.values()}
    named: dict[str, Token | None] = {}
    for key in NAMED_TOKENS:
        if key in values:
            token = _token(values[key], f"{at}: {key}")
            named[key] = token if token is None else by_content.get(content(token), token)
    for key, value in values.items():
        if _is_model_specific(key, _typed(value)):
            named[key] = _token(value, f"{at}: {key}")
    for key, value in model_specific.items():
        named[key] = _token(value, f"{at}: {key}")
    extra = values.get("extra_special_tokens")
    listed = extra if isinstance(extra, list) else []
    tokens = [_token(token, f"{at}: extra_special_tokens") for token in listed]
    return SpecialTokens(named, [token for token in tokens if token is not None], added)


def _legacy(
    folder: Path,
    tokenizer_json: str,
    values: Json,
    model_specific: Json,
    added: dict[int, AddedToken],
) -> None:
    """Before ``added_tokens_decoder``: three files say what is in it."""
    at = f"{folder.name}/special_tokens_map.json"
    for key, value in read_object(folder / "special_tokens_map.json").items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            values[key] = _added({**value, "special": True}, f"{at}: {key}")
        elif key == "extra_special_tokens" and isinstance(value, list):
            before = values.get(key)
            merged = list(before) if isinstance(before, list) else []
            for item in value:
                token = _added({**item, "special": True}, at) if isinstance(item, dict) else item
                if token not in merged:
                    merged.append(token)
            values[key] = merged
        else:
            values[key] = value
    _move_named(values, model_specific)
    special = {
        content(token)
        for key in NAMED_TOKENS
        if (token := _token(values.get(key), f"{at}: {key}")) is not None
    }
    extra = values.get("extra_special_tokens")
    listed = extra if isinstance(extra, list) else []
    special |= {content(token) for token in listed if isinstance(token, str | AddedToken)}
    # Only now: transformers does not count these for the flags below.
    if "additional_special_tokens" in values and "extra_special_tokens" not in values:
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    for text, id in read_object(folder / "added_tokens.json").items():
        if not isinstance(id, int):
            raise VlmcError(f"'{text}' has no id", at=f"{folder.name}/added_tokens.json")
        flag = text in special
        added[id] = AddedToken(text, normalized=not flag, special=flag)
    for entry in json.loads(tokenizer_json)["added_tokens"]:
        added[entry["id"]] = _added({k: v for k, v in entry.items() if k != "id"}, at)


def _move_named(values: Json, model_specific: Json) -> None:
    by_name = values.get("extra_special_tokens")
    if isinstance(by_name, dict):
        del values["extra_special_tokens"]
        model_specific |= by_name


def _is_model_specific(key: str, value: object) -> bool:
    return (
        key not in NAMED_TOKENS and key.endswith("_token") and isinstance(value, str | AddedToken)
    )


def _typed(value: object) -> object:
    """A token written as ``{"__type": "AddedToken", ...}``; anything else as it is."""
    if isinstance(value, Mapping) and value.get("__type") == "AddedToken":
        return _added(value, "tokenizer_config.json")
    return value


def _token(value: object, at: str) -> Token | None:
    if value is None or isinstance(value, str | AddedToken):
        return value
    return _added(value, at)


def _added(value: object, at: str) -> AddedToken:
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise VlmcError("a token is its text, or an object with its content", at=at)
    fields: dict[str, Any] = {key: item for key, item in value.items() if key in _FIELDS}
    try:
        return AddedToken(**fields)
    except TypeError as error:
        raise VlmcError(f"this does not describe a token: {error}", at=at) from error
