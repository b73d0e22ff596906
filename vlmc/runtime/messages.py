"""Chat messages: the usual JSON, checked and brought to one form."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from vlmc.errors import VlmcError
from vlmc.schema import Json

ROLES = ("system", "user", "assistant", "tool")
PARTS = ("text", "image", "image_url")
MAX_IMAGE_BYTES = 128 * 1024 * 1024  # of one picture written into the messages

_SOURCE_KEYS = ("image", "path", "url", "base64")


@dataclass(frozen=True)
class ImageSource:
    """Where one picture comes from: a file, or bytes written into the messages.

    Attributes:
        at: Its place, for errors.
        path: The file, when it is one.
        data: The encoded picture, when the messages hold it.
    """

    at: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)


def simple_message(prompt: str, n_images: int) -> list[Json]:
    """The messages of ``--prompt`` and ``--image``: the images in order, then the text."""
    _check_text(prompt, "--prompt")
    images: list[Json] = [{"type": "image"} for _ in range(n_images)]
    return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]


def parse_messages(
    text: str | bytes,
    images: Sequence[Path] = (),
    *,
    folder: Path | None = None,
    files: bool = True,
    at: str = "messages",
) -> tuple[list[Json], tuple[ImageSource, ...]]:
    """Read messages from JSON text; see :func:`normalize_messages` for the arguments.

    Raises:
        VlmcError: Not JSON, or not messages.
    """
    try:
        value = json.loads(text)
    except UnicodeDecodeError as error:
        raise VlmcError("the file is not UTF-8 text", at=at) from error
    except ValueError as error:
        raise VlmcError(f"this is not JSON: {error}", at=at) from error
    except RecursionError as error:
        raise VlmcError("the JSON is nested too deeply", at=at) from error
    return normalize_messages(value, images, folder=folder, files=files, at=at)


def normalize_messages(
    value: object,
    images: Sequence[Path] = (),
    *,
    folder: Path | None = None,
    files: bool = True,
    at: str = "messages",
) -> tuple[list[Json], tuple[ImageSource, ...]]:
    """Check messages and list their pictures in order of appearance.

    Args:
        value: ``[{"role": ..., "content": text or parts}]``, as parsed from JSON. An image part
            holds one of ``image``, ``path``, ``url`` (a local path, ``file://`` or ``data:``),
            ``base64``, or none of them: then it takes the next of ``images``.
        images: The files of ``--image``, in order.
        folder: What relative paths in the messages start from; None: the working folder.
        files: Whether messages may name files at all (a server says no).
        at: The place of the messages, for errors.

    Returns:
        The messages with parts ``{"type": "text", "text": ...}`` and ``{"type": "image"}`` only
        (a string content stays a string), and one source per image part.

    Raises:
        VlmcError: Anything unknown, of a wrong type, or a number of files that does not fit.
    """
    if not isinstance(value, list):
        raise VlmcError(f"messages are a list, got {_kind(value)}", at=at)
    if not value:
        raise VlmcError("there is no message", at=at)
    reader = _Reader(list(images), folder or Path(), files)
    messages = [reader.message(item, f"{at}[{index}]") for index, item in enumerate(value)]
    if reader.waiting:
        raise VlmcError(
            f"{len(images)} image files for {len(images) - len(reader.waiting)} image parts "
            "without a source",
            at=at,
            hint='add {"type": "image"} where each of the other images belongs',
        )
    return messages, tuple(reader.sources)


@dataclass
class _Reader:
    waiting: list[Path]  # files of --image not yet taken
    folder: Path
    files: bool
    sources: list[ImageSource] = field(default_factory=list)

    def message(self, item: object, at: str) -> Json:
        message = _object(item, at)
        _known(message, ("role", "content"), at)
        role = message.get("role")
        if not isinstance(role, str):
            raise VlmcError(f"a role is a string, got {_kind(role)}", at=f"{at}.role")
        if role not in ROLES:
            raise VlmcError(f"unknown role '{role}'", at=f"{at}.role", allowed=ROLES, got=role)
        content = message.get("content")
        if isinstance(content, str):
            return {"role": role, "content": _check_text(content, f"{at}.content")}
        if not isinstance(content, list):
            problem = f"content is a string or a list of parts, got {_kind(content)}"
            raise VlmcError(problem, at=f"{at}.content")
        parts = [self.part(part, f"{at}.content[{i}]") for i, part in enumerate(content)]
        return {"role": role, "content": parts}

    def part(self, item: object, at: str) -> Json:
        part = _object(item, at)
        kind = part.get("type")
        if not isinstance(kind, str):
            raise VlmcError(f"a part's type is a string, got {_kind(kind)}", at=f"{at}.type")
        if kind not in PARTS:
            raise VlmcError(f"unknown part '{kind}'", at=f"{at}.type", allowed=PARTS, got=kind)
        if kind == "text":
            _known(part, ("type", "text"), at)
            return {"type": "text", "text": _check_text(part.get("text"), f"{at}.text")}
        if kind == "image":
            _known(part, ("type", *_SOURCE_KEYS), at)
            given = [key for key in _SOURCE_KEYS if part.get(key) is not None]
            if len(given) > 1:
                raise VlmcError(f"one source is enough, got {', '.join(given)}", at=at)
            self.sources.append(self.source(part, given[0], at) if given else self.next_file(at))
        else:
            _known(part, ("type", "image_url"), at)
            holder = part.get("image_url")
            if isinstance(holder, str):
                holder = {"url": holder}
            place = f"{at}.image_url"
            url = _object(holder, place)
            _known(url, ("url", "detail"), place)
            self.sources.append(self.source(url, "url", place))
        return {"type": "image"}

    def source(self, part: Json, key: str, at: str) -> ImageSource:
        at = f"{at}.{key}"
        value = part.get(key)
        if not isinstance(value, str) or not value:
            raise VlmcError(f"an image is named by a string, got {_kind(value)}", at=at)
        if key == "base64":
            return ImageSource(at, data=_base64(value, at))
        if value[:5].lower() == "data:":
            return ImageSource(at, data=_data_uri(value, at))
        return ImageSource(at, path=self.file(value, at))

    def file(self, value: str, at: str) -> Path:
        _check_text(value, at)
        scheme = value.split(":", 1)[0].lower() if "://" in value else ""
        if scheme in ("http", "https"):
            raise VlmcError(
                f"images are not fetched from the network: '{value[:80]}'",
                at=at,
                hint="download the file and name it by its path",
            )
        if not self.files:
            hint = "send the picture as a data: URI"
            raise VlmcError("a file cannot be named here", at=at, hint=hint)
        if scheme == "file":
            address = urlsplit(value)
            if address.netloc not in ("", "localhost"):
                raise VlmcError(f"'{address.netloc}' is another machine", at=at)
            value = unquote(address.path)
        elif scheme:
            raise VlmcError(
                f"unknown scheme '{scheme}'", at=at, allowed=("file", "data"), got=scheme
            )
        if "\0" in value:
            raise VlmcError("a path cannot hold a NUL character", at=at)
        return self.folder / value

    def next_file(self, at: str) -> ImageSource:
        if not self.waiting:
            hint = "give one --image for each, or name the file in the part"
            raise VlmcError("this image part has no source and no file is left", at=at, hint=hint)
        return ImageSource(at, path=self.waiting.pop(0))


def _data_uri(uri: str, at: str) -> bytes:
    header, comma, body = uri[5:].partition(",")
    if not comma:
        raise VlmcError("a data: URI has a comma before its data", at=at)
    kind, *options = [word.strip().lower() for word in header.split(";")]
    if not kind.startswith("image/"):
        raise VlmcError(f"the data: URI holds '{kind or 'text'}', not an image", at=at)
    if "base64" in options:
        return _base64(unquote(body), at)
    data = unquote_to_bytes(body)
    return _bounded(data, len(data), at)


def _base64(text: str, at: str) -> bytes:
    _bounded(b"", len(text) // 4 * 3, at)
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise VlmcError("this is not base64", at=at) from error
    if not data:
        raise VlmcError("the image is empty", at=at)
    return data


def _bounded(data: bytes, size: int, at: str) -> bytes:
    if size > MAX_IMAGE_BYTES:
        raise VlmcError(f"an image of {size} bytes; {MAX_IMAGE_BYTES} is the limit", at=at)
    return data


def _check_text(text: object, at: str) -> str:
    if not isinstance(text, str):
        raise VlmcError(f"a text is a string, got {_kind(text)}", at=at)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half of a surrogate pair at character {error.start}: not Unicode text"
        raise VlmcError(problem, at=at) from error
    return text


def _object(item: object, at: str) -> Json:
    if not isinstance(item, dict):
        raise VlmcError(f"an object is needed, got {_kind(item)}", at=at)
    return item


def _known(item: Json, keys: tuple[str, ...], at: str) -> None:
    for key in item:
        if key not in keys:
            raise VlmcError(f"unknown key '{key}'", at=f"{at}.{key}", allowed=keys, got=key)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number")
