"""A checkpoint's tokenizer and chat template, resolved to what a bundle ships."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from vlmc.bundle.manifest import ImageLayout, PictureAhead, PromptFrame, PromptSpec
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
    image_token_id: int,
    vocab_size: int,
    *,
    plain_image: str,
    image_layout: ImageLayout | None = None,
    opening: str = "",
    closing: str = "",
    default_template: str | None = None,
    image_frame: tuple[str, str] | None = None,
    frame: PromptFrame | None = None,
    ahead: PictureAhead | None = None,
    add_special_tokens: bool = True,
    extra_tokens: Sequence[str] = (),
) -> tuple[PromptSpec, dict[str, bytes]]:
    """How a checkpoint turns messages into token ids.

    Args:
        folder: The checkpoint.
        image_token: The image's placeholder; None: the token of ``image_token_id``.
        image_token_id: Its id, from ``config.json``.
        vocab_size: Rows of the embedding.
        plain_image: What an image becomes where there is no chat template, ``{image}`` for the
            placeholder.
        image_layout: What stands around an image's tokens; ``{name}`` in it, as in the frame, is
            the special token of that name.
        opening: What stands before every prompt.
        closing: What stands behind it; names as in the layout.
        default_template: The chat template where the checkpoint has none.
        image_frame: Names of the special tokens before and after an image's placeholders.
        frame: What the processor adds to every prompt.
        ahead: What it puts around a picture that comes ahead of all text.
        add_special_tokens: Whether the tokenizer adds its own.
        extra_tokens: Words that the processor adds to the tokenizer where they are not.

    Returns:
        The prompt's description, and the files of the bundle's ``processor/`` folder by name:
        ``tokenizer.json`` as ``AutoTokenizer`` would have it in memory, no truncation or padding,
        and ``chat_template.jinja`` where there is a template.

    Raises:
        VlmcError: No tokenizer, no image token in it, or files that contradict each other.
    """
    config = read_object(folder / "tokenizer_config.json")
    loaded = load_tokenizer(folder, read_object(folder / "config.json"), config)
    known = loaded.tokenizer.get_vocab()
    loaded.tokenizer.add_tokens([token for token in extra_tokens if token not in known])
    if ahead is None:
        image_token = _image_token(folder, loaded.tokenizer, image_token, image_token_id)
    else:
        image_token = _image_word(folder, loaded.tokenizer, ahead, image_token_id)
    template = _chat_template(folder, config) or default_template
    files = {"tokenizer.json": loaded.tokenizer.to_str().encode()}
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    variables: dict[str, str | list[str]] = dict(loaded.special_tokens)
    before, after = image_frame or (None, None)
    at = f"{folder.name}/tokenizer_config.json"

    def filled(match: re.Match[str]) -> str:
        known = match[2] is None or isinstance(variables.get(match[1]), str)
        return _framing(variables, match[1], at)[0] if known else match[2]

    def named(texts: Frozen) -> dict[str, str]:
        """Texts with special tokens in the place of their names."""
        found = texts.model_dump(exclude_none=True)
        return {key: _NAME.sub(filled, text) for key, text in found.items()}

    layout = None if image_layout is None else ImageLayout(**named(image_layout))
    placeholder = image_token if layout is None else layout.placeholder or image_token
    spec = PromptSpec(
        image_token=image_token,
        image_token_id=image_token_id,
        chat_template=None if template is None else TEMPLATE_PATH,
        plain_image=plain_image.replace("{image}", placeholder),
        special_tokens=variables,
        vocab_size=vocab_size,
        image_prefix=_framing(variables, before, at),
        image_suffix=_framing(variables, after, at),
        clean_up_tokenization_spaces=loaded.clean_up_tokenization_spaces,
        image_layout=layout,
        opening=opening,
        closing=_NAME.sub(filled, closing),
        add_special_tokens=add_special_tokens,
        frame=None if frame is None else PromptFrame(**named(frame)),
        ahead=ahead,
    )
    return spec, files


def _framing(tokens: Mapping[str, str | list[str]], name: str | None, at: str) -> tuple[str, ...]:
    if name is None:
        return ()
    token = tokens.get(name)
    if not isinstance(token, str):
        raise VlmcError(f"the tokenizer has no '{name}', which this family needs", at=at)
    return (token,)


def _image_token(folder: Path, tokenizer: Tokenizer, token: str | None, id: int) -> str:
    added = {key: entry.content for key, entry in tokenizer.get_added_tokens_decoder().items()}
    if token is None and id in added:
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
