"""Messages and prepared images to the prompt a language program reads."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vlmc.bundle.manifest import ImageLayout, ImageText, PromptSpec
from vlmc.bundle.store import check_name
from vlmc.errors import VlmcError
from vlmc.runtime.injection import unbroken
from vlmc.runtime.template import ChatTemplate
from vlmc.runtime.tokenizer import StreamDecoder, TextTokenizer
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt
from vlmc.schema import Json

PROMPT_FILE = "processor/prompt.json"
TOKENIZER_FILE = "processor/tokenizer.json"


class PromptBuilder:
    """Renders, tokenizes and expands prompts; decodes answers.

    Args:
        spec: ``processor/prompt.json``.
        tokenizer: ``processor/tokenizer.json``.
        template: The chat template, or None for the plain format: each image is
            ``spec.plain_image``, texts stand as they are, and the tokenizer adds its own special
            tokens as it does by default.

    Raises:
        VlmcError: The image token is not the tokenizer's, or what stands around an image is none.
    """

    def __init__(
        self, spec: PromptSpec, tokenizer: TextTokenizer, template: ChatTemplate | None
    ) -> None:
        found = tokenizer.token_to_id(spec.image_token)
        if found != spec.image_token_id or not tokenizer.is_added(spec.image_token):
            raise VlmcError(
                f"'{spec.image_token}' is {spec.image_token_id} in the prompt's description, "
                f"{found} in the tokenizer",
                at=PROMPT_FILE,
            )
        self.spec = spec
        self._prefix, self._suffix = (
            _added_ids(tokens, tokenizer) for tokens in (spec.image_prefix, spec.image_suffix)
        )
        self._tokenizer = tokenizer
        self._template = template
        bos = spec.special_tokens.get("bos_token")
        self._bos = bos if isinstance(bos, str) else None
        named = [value for value in spec.special_tokens.values() if isinstance(value, str)]
        if spec.image_layout is not None:
            # At an added token texts are split: what is between two is tokenized by itself.
            if not tokenizer.is_added(spec.image_layout.edge):
                problem = f"'{spec.image_layout.edge}' is not an added token of the tokenizer"
                raise VlmcError(problem, at=PROMPT_FILE)
            named += [spec.image_layout.edge, spec.image_layout.whole]
        if spec.image_text is not None:
            named.append(spec.image_text.placeholder)
        literals = spec.plain_image if template is None else template.literals()
        self._guard = tokenizer.guard([spec.image_token, *named], literals)

    @classmethod
    def load(cls, bundle: Path) -> "PromptBuilder":
        """Read the ``processor/`` folder of a bundle.

        Raises:
            VlmcError: A file is missing or malformed.
        """
        try:
            spec = PromptSpec.model_validate_json(_read(bundle / PROMPT_FILE))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(key) for key in first["loc"])
            raise VlmcError(first["msg"], at=f"{PROMPT_FILE}: {place}") from error
        tokenizer = TextTokenizer(
            _read(bundle / TOKENIZER_FILE),
            clean_up_tokenization_spaces=spec.clean_up_tokenization_spaces,
            at=TOKENIZER_FILE,
        )
        template = None
        if spec.chat_template is not None:
            check_name(spec.chat_template)
            source = _read(bundle / spec.chat_template).decode()
            template = ChatTemplate(source, at=spec.chat_template)
        return cls(spec, tokenizer, template)

    def build(self, messages: Sequence[Json], images: Sequence[PreparedImage]) -> Prompt:
        """The prompt of these messages.

        Ids equal transformers' ``processor.apply_chat_template(messages, tokenize=True,
        add_generation_prompt=True)``, unless a text spells a special token: that stays text.

        Args:
            messages: As ``vlmc.runtime.messages`` returns them.
            images: One for each image part, in order.

        Raises:
            VlmcError: The template refuses the messages or drops parts of them, or the number of
                images is not that of the placeholders.
        """
        if not messages:
            raise VlmcError("there is no message")
        broken = [_map_texts(message, self._guard.broken) for message in messages]
        marked = self._render(broken)
        plain = marked if broken == list(messages) else self._render(messages)
        self._check_dropped(messages, plain)
        # The processor's rule: a template that writes bos leaves nothing for the tokenizer to add.
        bos = self._bos if self._template is not None else None
        bare = (bos is not None and marked.startswith(bos)) or self.spec.frame is not None
        if self.spec.image_text is not None or self.spec.frame is not None:
            written = marked
            marked = finished(marked, self.spec, images)
            # What is written into the text stands there unbroken in both.
            if plain != written and plain != unbroken(written):
                raise VlmcError(
                    "a text spells a special token, in a way that cannot be kept apart from the "
                    "template's own",
                    at="messages",
                    hint="leave out the words that spell the model's special tokens",
                )
            plain = unbroken(marked) if plain != written else marked
        ids = self._guard.ids(plain, marked, add_special_tokens=not bare)
        return self._expand(np.asarray(ids, dtype=np.int64), images)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, as transformers' ``tokenizer.decode``."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self) -> StreamDecoder:
        """A decoder for one answer, special tokens left out."""
        return self._tokenizer.stream()

    def _render(self, messages: Sequence[Json]) -> str:
        if self._template is not None:
            return self._template.render(messages, self.spec.special_tokens)
        if len(messages) > 1 or messages[0]["role"] != "user":
            raise VlmcError(
                "this model has no chat template: it takes one user message",
                at="messages",
                hint=f"got the roles {', '.join(str(m['role']) for m in messages)}",
            )
        return "".join(
            self.spec.plain_image if part["type"] == "image" else str(part["text"])
            for part in _parts(messages[0])
        )

    def _check_dropped(self, messages: Sequence[Json], rendered: str) -> None:
        """Templates that read parts only, render a string as nothing: better refused than lost."""
        for index, message in enumerate(messages):
            text = message["content"]
            if not isinstance(text, str) or not text.strip() or text.strip() in rendered:
                continue
            parts: Json = {**message, "content": [{"type": "text", "text": text}]}
            as_parts = [*messages[:index], parts, *messages[index + 1 :]]
            if text.strip() in self._render(as_parts):
                raise VlmcError(
                    "the model's template drops a content that is a string",
                    at=f"messages[{index}].content",
                    hint='write it as [{"type": "text", "text": "..."}]',
                )

    def _expand(self, ids: NDArray[np.int64], images: Sequence[PreparedImage]) -> Prompt:
        places = np.flatnonzero(ids == self.spec.image_token_id)
        if self.spec.image_text is not None:
            owners, runs = self._text_runs(images)
        else:
            owners, runs = list(range(len(images))), [self._image_ids(image) for image in images]
        if len(places) != len(runs):
            raise _misplaced(len(places), len(images))
        texts = np.split(ids, places)
        pieces, spans, length = [texts[0]], [], len(texts[0])
        for index, run, text in zip(owners, runs, texts[1:], strict=True):
            spans.append(ImageSpan(length + len(self._prefix), len(run), index))
            framed = [self._prefix, run, self._suffix, text[1:]]
            pieces += framed
            length += sum(map(len, framed))
        expanded = np.concatenate(pieces)
        if len(expanded) and int(expanded.max()) >= self.spec.vocab_size:
            most = f"the model has {self.spec.vocab_size} tokens"
            raise VlmcError(f"the tokenizer gives id {expanded.max()}; {most}")
        feature_index = np.full(len(expanded), -1, dtype=np.int64)
        rows = expanded == self.spec.image_token_id
        feature_index[rows] = np.arange(int(rows.sum()))
        return Prompt(expanded, feature_index, tuple(spans), tuple(images))

    def _text_runs(
        self, images: Sequence[PreparedImage]
    ) -> tuple[list[int], list[NDArray[np.int64]]]:
        """Every run of image tokens where ``image_text`` has put them: its image, and its ids."""
        owners, runs = [], []
        for index, image in enumerate(images):
            count = 1 + image.tiles[0] * image.tiles[1]
            each = np.full(image.tokens // count, self.spec.image_token_id, dtype=np.int64)
            owners += [index] * count
            runs += [each] * count
        return owners, runs

    def _image_ids(self, image: PreparedImage) -> NDArray[np.int64]:
        """What an image's placeholder becomes: image tokens, and the marks around its tiles."""
        token, layout = self.spec.image_token_id, self.spec.image_layout
        if layout is None:
            return np.full(image.tokens, token, dtype=np.int64)
        text = _laid_out(layout, *image.tiles, self.spec.image_token)
        ids = np.asarray(self._tokenizer.encode(text), dtype=np.int64)
        each = image.tokens // (image.tiles[0] * image.tiles[1] + 1)
        return np.repeat(ids, np.where(ids == token, each, 1))


def finished(text: str, spec: PromptSpec, images: Sequence[PreparedImage]) -> str:
    """A rendered prompt with what its processor writes into it, image tokens one for a run.

    Raises:
        VlmcError: The places for images are not as many as the images.
    """
    if spec.image_text is not None:
        pieces = text.split(spec.image_text.placeholder)
        if len(pieces) != len(images) + 1:
            raise _misplaced(len(pieces) - 1, len(images))
        text = pieces[0]
        for image, piece in zip(images, pieces[1:], strict=True):
            text += _image_text(spec.image_text, image.tiles[0] * image.tiles[1]) + piece
    if spec.frame is not None:
        if not images:
            raise VlmcError("this model takes no prompt without an image", at="messages")
        end = text.rfind(spec.image_token) + len(spec.image_token)
        text = text[:end] + spec.frame.after_images + text[end:] + spec.frame.end
    return text


def _image_text(marks: ImageText, tiles: int) -> str:
    return marks.whole + marks.between.join([marks.tile] * tiles) if tiles else marks.alone


def _misplaced(places: int, images: int) -> VlmcError:
    return VlmcError(
        f"the prompt has {places} places for images, for {images} images",
        at="messages",
        hint="the model's chat template decides where an image is taken",
    )


def _laid_out(layout: ImageLayout, rows: int, columns: int, token: str) -> str:
    """The text of one image, with one image token for each tile."""
    text = ""
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            text += layout.edge + layout.tile.format(row=row, column=column) + token
        text += layout.row_end
    if rows:
        text += layout.before_whole
    return text + layout.edge + layout.whole + token + layout.edge


def _added_ids(tokens: Sequence[str], tokenizer: TextTokenizer) -> NDArray[np.int64]:
    """Ids of the tokens around an image.

    Raises:
        VlmcError: One is not an added token of the tokenizer.
    """
    for token in tokens:
        if not tokenizer.is_added(token):
            raise VlmcError(f"'{token}' is no added token of the tokenizer", at=PROMPT_FILE)
    return np.array([tokenizer.token_to_id(token) for token in tokens], dtype=np.int64)


def _parts(message: Json) -> list[Json]:
    content = message["content"]
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}]


def _map_texts(message: Json, change: Callable[[str], str]) -> Json:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    parts = [
        {**part, "text": change(str(part["text"]))} if part["type"] == "text" else part
        for part in _parts(message)
    ]
    return {**message, "content": parts}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"the file cannot be read: {error.strerror}"
        raise VlmcError(problem, at=f"{path.parent.name}/{path.name}") from error
