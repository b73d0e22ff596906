"""Messages and prepared images to the prompt a language program reads."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vlmc.bundle.manifest import ImageLayout, PromptFrame, PromptSpec
from vlmc.bundle.store import check_name
from vlmc.errors import VlmcError
from vlmc.runtime.ahead import behind_picture
from vlmc.runtime.expansion import check_places, check_vocabulary, expand
from vlmc.runtime.injection import BREAK
from vlmc.runtime.layout import image_text, join_edges
from vlmc.runtime.template import ChatTemplate
from vlmc.runtime.tokenizer import StreamDecoder, TextTokenizer
from vlmc.runtime.types import PreparedImage, Prompt
from vlmc.runtime.vision_text import VisionReader
from vlmc.schema import Json

PROMPT_FILE = "processor/prompt.json"
TOKENIZER_FILE = "processor/tokenizer.json"
_TAKEN = -1  # stands for an image's token until its id is known


class PromptBuilder:
    """Renders, tokenizes and expands prompts; decodes answers.

    Args:
        spec: ``processor/prompt.json``.
        tokenizer: ``processor/tokenizer.json``.
        template: The chat template, or None for the plain format: each image is
            ``spec.plain_image``, texts stand as they are, and the tokenizer adds its own special
            tokens as it does by default.
        reader: Gives the vision program the text, as ``spec.vision_text`` says.

    Raises:
        VlmcError: The image token is not the tokenizer's, or what frames an image is none.
    """

    def __init__(
        self,
        spec: PromptSpec,
        tokenizer: TextTokenizer,
        template: ChatTemplate | None,
        reader: VisionReader | None = None,
    ) -> None:
        found = tokenizer.token_to_id(spec.image_token)
        known = spec.ahead is not None or tokenizer.is_added(spec.image_token)
        if found != spec.image_token_id or not known:
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
        self._reader = reader
        bos = spec.special_tokens.get("bos_token")
        self._bos = bos if isinstance(bos, str) else None
        named = [value for value in spec.special_tokens.values() if isinstance(value, str)]
        literals = spec.plain_image if template is None else template.literals()
        placeholder = None
        if spec.image_layout is not None:
            literals += "".join(spec.image_layout.texts().values())
            placeholder = spec.image_layout.placeholder
        self._placeholder = placeholder or spec.image_token
        named += [spec.image_token, *spec.image_prefix, *spec.image_suffix]
        words = [] if spec.ahead is None else list(spec.ahead.model_dump().values())
        self._guard = tokenizer.guard(
            [*named, *words], literals, texts=[self._placeholder], words=words
        )

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
            at = f"{PROMPT_FILE}: {place}" if place else PROMPT_FILE
            raise VlmcError(first["msg"], at=at) from error
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
        reader = None
        if spec.vision_text is not None:
            check_name(spec.vision_text.tokenizer)
            reader = VisionReader(spec.vision_text, _read(bundle / spec.vision_text.tokenizer))
        return cls(spec, tokenizer, template, reader)

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
        if self.spec.ahead is not None and images:
            end, id = self.spec.ahead.text_end, self.spec.image_token_id
            text = self._guard.ids(plain + end, marked + end, add_special_tokens=False)
            prompt = behind_picture(self._tokenizer.encode, self.spec.ahead, id, images, text)
            check_vocabulary(prompt.token_ids, self.spec)
            return prompt
        rendered, runs = marked, [1] * len(images)
        if self.spec.leading_images and not images:
            raise VlmcError("this model takes no prompt without an image", at="messages")
        if self.spec.leading_text is not None:
            plain, marked = (self.spec.leading_text + text.strip() for text in (plain, marked))
        if self.spec.image_layout is not None:
            plain, marked = self._laid_out(plain, marked, images, self.spec.image_layout)
            runs = [1 + image.tiles[0] * image.tiles[1] for image in images]
        # The processor's rule: a template that writes bos leaves nothing for the tokenizer to add.
        bos = self._bos if self._template is not None else None
        has_bos = bos is not None and rendered.startswith(bos)
        if self.spec.frame is not None:
            plain, marked = self._framed(plain, marked, self.spec.frame)
        bare = has_bos or self.spec.frame is not None or not self.spec.add_special_tokens
        opening, closing = self.spec.opening, self.spec.closing
        if self.spec.opening_once and rendered.startswith(opening):
            opening = ""
        plain, marked = (opening + text + closing for text in (plain, marked))
        ids = self._guard.ids(plain, marked, add_special_tokens=not bare)
        if self.spec.leading_images and self.spec.leading_text is None:
            ids = self._led(ids, len(images))
        if self._reader is not None:
            apart = self._render([_map_texts(m, self._reader.broken) for m in messages])
            apart = opening + apart + closing
            images = self._reader.read(plain, apart, images, add_special_tokens=not bare)
        frame = (self._prefix, self._suffix)
        return expand(np.asarray(ids, dtype=np.int64), images, runs, self.spec, frame)

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

    def _laid_out(
        self, plain: str, marked: str, images: Sequence[PreparedImage], layout: ImageLayout
    ) -> tuple[str, str]:
        """Both renderings with each image's whole text, one image token a tile, in its place."""
        pieces = marked.split(self._placeholder)
        check_places(len(pieces) - 1, len(images))
        token = self.spec.image_token
        texts = [
            image_text(layout, *image.tiles, token, index=index)
            for index, image in enumerate(images)
        ]
        marked = pieces[0] + "".join(
            text + piece for text, piece in zip(texts, pieces[1:], strict=True)
        )
        if layout.edge:
            marked = join_edges(marked, layout.edge)
            return marked.replace(BREAK, ""), marked
        apart = plain.split(self._placeholder)
        if len(apart) != len(pieces):  # a text spells the placeholder
            return marked.replace(BREAK, ""), marked
        joined = (text + piece for text, piece in zip(texts, apart[1:], strict=True))
        return apart[0] + "".join(joined), marked

    def _framed(self, plain: str, marked: str, frame: PromptFrame) -> tuple[str, str]:
        """Both with what the processor adds: behind the last image, and at the end.

        Mirrors ``PaliGemmaProcessor.prepare_inputs_layout``.

        Raises:
            VlmcError: There is no image.
        """
        place = marked.rfind(self.spec.image_token)
        if place < 0:
            raise VlmcError("this model takes no prompt without an image", at="messages")
        place += len(self.spec.image_token)
        framed = marked[:place] + frame.after_images + marked[place:] + frame.end
        return (framed if plain == marked else framed.replace(BREAK, "")), framed

    def _led(self, ids: list[int], images: int) -> list[int]:
        """The ids behind one image token for each image.

        Mirrors ``Blip2Processor.__call__``.

        Raises:
            VlmcError: The template writes image tokens too.
        """
        if self.spec.image_token_id in ids:
            raise VlmcError(
                f"the template writes '{self.spec.image_token}', which belongs before the prompt",
                at=self.spec.chat_template,
            )
        return [self.spec.image_token_id] * images + ids


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
