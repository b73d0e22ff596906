"""A checkpoint's tokenizer and chat template, resolved to what a bundle ships."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vlmc.bundle.manifest import ImageLayout, PictureAhead, PromptFrame, PromptSpec, VisionText
from vlmc.errors import VlmcError
from vlmc.families.special_tokens import read_object
from vlmc.families.tokenizer_files import load_tokenizer
from vlmc.runtime.ahead import picture_ids
from vlmc.schema import Frozen, Json

TEMPLATE_PATH = "processor/chat_template.jinja"
_NAME = re.compile(r"\{(\w+_token)(?:\|([^}]*))?\}")
_TEMPLATE_FOLDER = "additional_chat_templates"


def read_prompt(
    folder: Path,
    image_token: str | None,
    image_token_id: int | None,
    vocab_size: int,
    *,
    plain_image: str,
    image_layout: ImageLayout | None = None,
    opening: str = "",
    opening_once: bool = False,
    closing: str = "",
    default_template: str | None = None,
    image_frame: tuple[str, str] | None = None,
    frame: PromptFrame | None = None,
    ahead: PictureAhead | None = None,
    add_special_tokens: bool = True,
    extra_tokens: Sequence[str] = (),
    mark_token_ids: tuple[int, ...] = (),
    beside_tokens: tuple[str, ...] = (),
    leading_images: bool = False,
    leading_text: str | None = None,
    numbered_after: str | None = None,
    vision_text: VisionText | None = None,
) -> tuple[PromptSpec, dict[str, bytes]]:
    """How a checkpoint turns messages into token ids.

    Args:
        folder: The checkpoint.
        image_token: The image's placeholder; None: the token of ``image_token_id``.
        image_token_id: Its id, from ``config.json``; None: that of ``image_token``.
        vocab_size: Rows of the embedding.
        plain_image: What an image becomes where there is no chat template, ``{image}`` for the
            placeholder.
        image_layout: What stands around an image's tokens; ``{name}`` in it, as in the frame, is
            the special token of that name, ``{image}`` the image's own.
        opening: What stands before every prompt.
        opening_once: Unless the prompt begins with it already.
        closing: What stands behind it; names as in the layout.
        default_template: The chat template where the checkpoint has none.
        image_frame: Names of the special tokens before and after an image's placeholders.
        frame: What the processor adds to every prompt.
        ahead: What it puts around a picture that comes ahead of all text.
        add_special_tokens: Whether the tokenizer adds its own.
        extra_tokens: Words that the processor adds to the tokenizer where they are not.
        mark_token_ids: Tokens beside the placeholders that take rows of an image's features.
        beside_tokens: Names of those that are images' to the decoder, and take none.
        leading_images: Whether an image's tokens stand before all others.
        leading_text: What an image is in the text then.
        numbered_after: Name of the special token behind whose id an image's tokens count up.
        vision_text: What the vision program reads of the prompt.

    Returns:
        The prompt's description, and the files of the bundle's ``processor/`` folder by name:
        ``tokenizer.json`` as ``AutoTokenizer`` would have it in memory, no truncation or padding,
        ``chat_template.jinja`` where there is a template, and the tokenizer of ``vision_text``.

    Raises:
        VlmcError: No tokenizer, no image token in it, or files that contradict each other.
    """
    config = read_object(folder / "tokenizer_config.json")
    loaded = load_tokenizer(folder, read_object(folder / "config.json"), config)
    known = loaded.tokenizer.get_vocab()
    loaded.tokenizer.add_tokens([token for token in extra_tokens if token not in known])
    if image_token_id is None:
        image_token_id = loaded.tokenizer.token_to_id(image_token or "")
    if ahead is None or image_token_id is None:
        image_token = _image_token(folder, loaded.tokenizer, image_token, image_token_id)
    else:
        image_token = _image_word(folder, loaded.tokenizer, ahead, image_token_id)
    template = _chat_template(folder, config) or default_template
    files = {"tokenizer.json": loaded.tokenizer.to_str().encode()}
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    if vision_text is not None:
        place = Path(vision_text.tokenizer)
        files[place.name] = _second_tokenizer(folder / place.stem)
    variables: dict[str, str | list[str]] = dict(loaded.special_tokens)
    before, after = image_frame or (None, None)
    at = f"{folder.name}/tokenizer_config.json"

    def filled(match: re.Match[str]) -> str:
        known = match[2] is None or isinstance(variables.get(match[1]), str)
        return _framing(variables, match[1], at)[0] if known else match[2]

    def named(texts: Frozen) -> dict[str, Any]:
        """Texts with special tokens in the place of their names."""
        return {
            key: _NAME.sub(filled, text.replace("{image}", image_token))
            if isinstance(text, str)
            else text
            for key, text in texts.model_dump(exclude_none=True).items()
        }

    named_beside = [_framing(variables, name, at)[0] for name in beside_tokens]
    beside = [id for one in named_beside if (id := loaded.tokenizer.token_to_id(one)) is not None]
    layout = None if image_layout is None else ImageLayout(**named(image_layout))
    placeholder = image_token if layout is None else layout.placeholder or image_token
    assert image_token_id is not None  # or there was no such token
    spec = PromptSpec(
        image_token=image_token,
        image_token_id=image_token_id,
        chat_template=None if template is None else TEMPLATE_PATH,
        plain_image=_NAME.sub(filled, plain_image.replace("{image}", placeholder)),
        special_tokens=variables,
        vocab_size=vocab_size,
        image_prefix=_framing(variables, before, at),
        image_suffix=_framing(variables, after, at),
        clean_up_tokenization_spaces=loaded.clean_up_tokenization_spaces,
        image_layout=layout,
        opening=_NAME.sub(filled, opening),
        opening_once=opening_once,
        closing=_NAME.sub(filled, closing),
        add_special_tokens=add_special_tokens,
        mark_token_ids=mark_token_ids,
        beside_token_ids=tuple(beside),
        frame=None if frame is None else PromptFrame(**named(frame)),
        leading_images=leading_images,
        leading_text=leading_text,
        first_image_id=_following(loaded.tokenizer, variables, numbered_after, at),
        vision_text=vision_text,
        ahead=ahead,
    )
    return spec, files


def _second_tokenizer(folder: Path) -> bytes:
    """The ``tokenizer.json`` of a checkpoint's further tokenizer."""
    config = read_object(folder / "tokenizer_config.json")
    return load_tokenizer(folder, {}, config).tokenizer.to_str().encode()


def _following(
    tokenizer: Tokenizer, tokens: Mapping[str, str | list[str]], name: str | None, at: str
) -> int | None:
    """The id behind that of a special token."""
    found = [tokenizer.token_to_id(token) for token in _framing(tokens, name, at)]
    return next((id + 1 for id in found if id is not None), None)


def _framing(tokens: Mapping[str, str | list[str]], name: str | None, at: str) -> tuple[str, ...]:
    if name is None:
        return ()
    token = name if name.startswith("<") else tokens.get(name)
    if not isinstance(token, str):
        raise VlmcError(f"the tokenizer has no '{name}', which this family needs", at=at)
    return (token,)


def _image_token(folder: Path, tokenizer: Tokenizer, token: str | None, id: int | None) -> str:
    added = {key: entry.content for key, entry in tokenizer.get_added_tokens_decoder().items()}
    if token is None and id is not None and id in added:
        return added[id]
    found = None if token is None else tokenizer.token_to_id(token)
    if token is not None and found == id and id in added:
        return token
    name = f"the token {id}" if token is None else f"'{token}'"
    if token is None or found is None:
        problem = f"the image's placeholder, {name}, is not in the tokenizer"
    elif found != id:
        problem = f"the image's placeholder, {name}, is {found} in the tokenizer, {id} in the model"
    else:
        problem = f"the image's placeholder, {name}, is a word, not an added token"
    hint = "looked in tokenizer.json and in added_tokens_decoder of tokenizer_config.json"
    raise VlmcError(problem, at=folder.name, hint=hint)


def _image_word(folder: Path, tokenizer: Tokenizer, ahead: PictureAhead, id: int) -> str:
    """The image token of a picture ahead of the text, once it is known to come out as one."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    found = {word: tokenizer.token_to_id(word) for word in (ahead.image, ahead.row_end)}
    if lacking := [word for word, known in found.items() if known is None]:
        raise VlmcError(f"the tokenizer has no '{lacking[0]}'", at=folder.name)
    if found[ahead.image] != id:
        problem = f"'{ahead.image}' is {found[ahead.image]} in the tokenizer, {id} in the model"
        raise VlmcError(problem, at=folder.name)
    try:
        picture_ids(encode, ahead, id, 2, 2)
    except VlmcError as error:
        raise error.located(folder.name) from error
    return ahead.image


def _chat_template(folder: Path, tokenizer_config: Json) -> str | None:
    """The default template, from the first of transformers' sources that has one.

    The processor's come first (``ProcessorMixin.get_processor_dict``): its configuration, the
    older ``chat_template.json``, then ``chat_template.jinja`` with the folder of other templates;
    last the tokenizer's own configuration.
    """
    config = read_object(folder / "processor_config.json")
    if config.get("chat_template") is not None:
        return _default(config["chat_template"], f"{folder.name}/processor_config.json")
    legacy = read_object(folder / "chat_template.json")
    others = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((folder / _TEMPLATE_FOLDER).glob("*.jinja"))
    }
    if legacy:
        at = f"{folder.name}/chat_template.json"
        if others:
            problem = f"the folder has templates in {_TEMPLATE_FOLDER} too: which one holds?"
            raise VlmcError(problem, at=at, hint="rename it to chat_template.jinja, as text")
        return _default(legacy.get("chat_template"), at)
    single = folder / "chat_template.jinja"
    if single.is_file():
        return single.read_text(encoding="utf-8")
    if others:
        return _default(dict(others), f"{folder.name}/{_TEMPLATE_FOLDER}")
    if tokenizer_config.get("chat_template") is None:
        return None
    at = f"{folder.name}/tokenizer_config.json"
    return _default(tokenizer_config["chat_template"], at)


def _default(value: object, at: str) -> str:
    """A template, or the one named ``default`` of several (a mapping, or a list of pairs)."""
    if isinstance(value, list):
        pairs = [item for item in value if isinstance(item, dict)]
        value = {str(item.get("name")): item.get("template") for item in pairs}
    if isinstance(value, dict):
        if "default" not in value:
            problem = f"several chat templates ({', '.join(sorted(value))}), none named 'default'"
            raise VlmcError(problem, at=at)
        value = value["default"]
    if not isinstance(value, str):
        raise VlmcError("a chat template is text", at=f"{at}: chat_template")
    return value
