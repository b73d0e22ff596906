"""What is asked of a model, and what it answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from PIL import Image

from vlmc.errors import VlmcError
from vlmc.runtime.sampling import SAMPLING_NAMES, Sampling
from vlmc.schema import Json

Picture = str | Path | bytes | Image.Image
FinishReason = Literal["stop", "length"]


class Options(TypedDict, total=False):
    """What ``Model.generate`` takes by name; see ``Request`` and ``Sampling``."""

    prompt: str | None
    images: Sequence[Picture]
    max_new_tokens: int | None
    stop: Sequence[str]
    ignore_eos: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: A chat as ``normalize_messages`` takes it; or None, and a ``prompt``.
        prompt: A text that follows the images, as one user message.
        images: The pictures of ``prompt``, or of the messages' image parts without a source:
            paths, encoded bytes or PIL images, in order.
        max_new_tokens: Most tokens of the answer; None: 256, or what ctx-len leaves.
        stop: Strings that end the answer; it is cut before them.
        ignore_eos: Generate exactly ``max_new_tokens``, end tokens or not.
        sampling: How tokens are chosen.
        folder: What relative paths in the messages start from; None: the working folder.
        files: Whether messages may name files at all (a server says no).
    """

    messages: Sequence[Json] | None = None
    prompt: str | None = None
    images: Sequence[Picture] = ()
    max_new_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    folder: Path | None = None
    files: bool = True

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise VlmcError("a request has either messages or a prompt", at="request")
        if isinstance(self.images, str | bytes | Path | Image.Image):
            raise VlmcError("images are a list", at="images")
        for index, image in enumerate(self.images):
            if not isinstance(image, str | bytes | Path | Image.Image):
                raise VlmcError(
                    f"a picture is a path, bytes or a PIL image, got {type(image).__name__}",
                    at=f"images[{index}]",
                )


def make_request(messages: Sequence[Json] | None, options: Options) -> Request:
    """A ``Request`` of flat options.

    Raises:
        VlmcError: An unknown option, or a value out of its range.
    """
    own = set(Options.__annotations__) - set(SAMPLING_NAMES)
    for name in options:
        if name not in own and name not in SAMPLING_NAMES:
            allowed = sorted(own) + list(SAMPLING_NAMES)
            raise VlmcError(f"unknown option '{name}'", allowed=allowed, got=name)
    values = dict(options)
    sampling = Sampling(**{name: values.pop(name, None) for name in SAMPLING_NAMES})  # type: ignore[arg-type]
    return Request(messages=messages, sampling=sampling, **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Timings:
    """Seconds of wall time.

    Attributes:
        load: Opening the bundle, tokenizer and programs included.
        preprocess: Decoding and preparing pictures, template, tokens.
        vision: Encoding images; 0 in the single split, where it is part of ``prefill``.
        prefill: Running the prompt.
        decode: From the first token to the last.
        ttft: From the request to the first token, waiting and a program's first opening included.
    """

    load: float
    preprocess: float
    vision: float
    prefill: float
    decode: float
    ttft: float


@dataclass(frozen=True)
class Usage:
    """Counts of tokens; ``image_tokens`` are among ``prompt_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Answer:
    """A finished answer; ``token_ids`` without the end token, ``text`` without a stop string.

    ``finish_reason`` is "stop" (end token or stop string) or "length".
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    usage: Usage

    def to_json(self) -> Json:
        """The object ``vlmc run --json`` prints."""
        return asdict(self)
