"""A bundle that is open: questions in, answers out."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vlmc.bundle.manifest import ImageSpec
from vlmc.bundle.store import Bundle, read_bundle, verify_digests
from vlmc.errors import VlmcError
from vlmc.runtime.engine import Engine, Features
from vlmc.runtime.generate import Job, Loop
from vlmc.runtime.images import check_spec, open_image, prepare, together
from vlmc.runtime.limits import answer_room, check_images
from vlmc.runtime.messages import normalize_messages, simple_message
from vlmc.runtime.positions import prompt_positions
from vlmc.runtime.prompt import PromptBuilder
from vlmc.runtime.request import Answer, Options, Picture, Request, make_request
from vlmc.runtime.rules import Rules
from vlmc.runtime.sampling import Sampler, check_number
from vlmc.runtime.stops import Stops
from vlmc.runtime.stream import AnswerStream
from vlmc.runtime.types import Array, PreparedImage, Prompt
from vlmc.schema import Json

IMAGES_FILE = "processor/images.json"


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    verify: bool = False,
    spin: bool | None = None,
    reuse: bool = True,
) -> "Model":
    """Opens a bundle.

    Args:
        path: A version folder, or a ``NAME`` folder (then its ``latest``).
        threads: Of the programs; None: the physical cores this process may use.
        verify: Hash every file first.
        spin: Idle threads wait busily between two products: faster steps, more CPU time. None:
            where no other process wants these cores as the bundle is opened.
        reuse: A prompt that begins as an earlier one did is not run again from the start; answers
            are the same without. For measuring, say no.

    Raises:
        VlmcError: Not a bundle, a broken one, or one this vlmc cannot run.
    """
    started = time.perf_counter()
    if threads is not None:
        check_number("threads", threads, kind=int, low=1, high=1024)
    bundle = read_bundle(Path(path))
    if verify:
        verify_digests(bundle)
    engine = Engine(bundle, threads=threads, spin=spin)
    spent = time.perf_counter() - started - engine.load_seconds
    return Model(bundle, engine, load_seconds=spent, reuse=reuse)


class Model:
    """The public face of the runtime; made by ``load``. One thread at a time.

    Attributes:
        rules: What the checkpoint has done to logits; another value counts from the next request.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, *, load_seconds: float = 0.0, reuse: bool = True
    ) -> None:
        started = time.perf_counter()
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.engine = engine
        self.loop = Loop(engine, reuse=reuse)
        self.prompts = PromptBuilder.load(bundle.folder)
        if self.prompts.spec.chat_template is not None:
            bundle.path(self.prompts.spec.chat_template)  # it must be one of the bundle's files
        self.images = _image_spec(bundle)
        self.rules = bundle.manifest.generation.logits
        self._load_seconds = load_seconds + time.perf_counter() - started

    @property
    def load_seconds(self) -> float:
        """Seconds spent opening, programs that were opened later included."""
        return self._load_seconds + self.engine.load_seconds

    def generate(
        self, messages: Sequence[Json] | None = None, **options: Unpack[Options]
    ) -> Answer:
        """Answers one question; see ``Request`` and ``Sampling`` for the options.

        Raises:
            VlmcError: A value out of its range, or a request outside the bundle's limits.
        """
        return self.start(make_request(messages, options)).finish()

    def stream(
        self, messages: Sequence[Json] | None = None, **options: Unpack[Options]
    ) -> AnswerStream:
        """The same, piece by piece; several streams may be read in turns.

        Raises:
            VlmcError: As ``generate``.
        """
        return self.start(make_request(messages, options))

    def generate_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers many questions, ``batch-size`` of them at a time; the others wait their turn.

        Raises:
            VlmcError: One of them is refused, before any is answered; or one failed.
        """
        streams = []
        for index, request in enumerate(requests):
            try:
                streams.append(self.prepare(request))
            except VlmcError as error:
                raise error.located(f"requests[{index}]") from error
        try:
            for stream in streams:
                self.loop.submit(stream.job)
            return [stream.finish() for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    def start(self, request: Request) -> AnswerStream:
        """Queues one request; reading the stream does the work.

        Raises:
            VlmcError: The request is refused.
        """
        stream = self.prepare(request)
        self.loop.submit(stream.job)
        return stream

    def prompt(
        self,
        messages: Sequence[Json] | None = None,
        *,
        prompt: str | None = None,
        images: Sequence[Picture] = (),
    ) -> Prompt:
        """The tokens and prepared images of a question.

        Raises:
            VlmcError: Messages that are wrong, pictures that cannot be read, or too many.
        """
        return self._prompt(Request(messages=messages, prompt=prompt, images=images))

    def image_features(self, image: PreparedImage) -> Array:
        """``[tokens, W]`` of one prepared image, deep-stack features beside the first ``H``.

        Raises:
            VlmcError: An answer is under way.
        """
        self._idle()
        return self.engine.encode(image)

    def logits(self, prompt: Prompt, forced: Sequence[int] = ()) -> NDArray[np.float32]:
        """Logits after a prompt and after each of some forced tokens, float32 [1 + forced, V].

        Raises:
            VlmcError: An answer is under way, or they do not fit ctx-len.
        """
        self._idle()
        length = len(prompt.token_ids)
        answer_room(length, max(1, len(forced)), self.manifest.limits, all_of_them=True)
        positions, following = prompt_positions(prompt, self.manifest.positions)
        features = Features()
        for chunk in self.engine.chunks(prompt):
            row = self.engine.prefill(0, prompt, positions, chunk, features)
        rows = [row]
        for step, token in enumerate(forced):
            row = self.engine.decode([token], [following + step], [length + step])[0]
            rows.append(row.copy())
        return np.stack(rows).astype(np.float32)

    def _idle(self) -> None:
        if self.loop.busy:
            raise VlmcError("an answer is under way", hint="finish or close its stream first")

    def prepare(self, request: Request) -> AnswerStream:
        """Checks a request and prepares its pictures and tokens; ``loop.submit`` queues its job.

        Touches neither programs nor cache: a server may do this beside the thread that runs the
        loop.

        Raises:
            VlmcError: The request is refused.
        """
        started = time.perf_counter()
        stops = Stops(request.stop)
        prompt = self._prompt(request)
        room = answer_room(
            len(prompt.token_ids),
            request.max_new_tokens,
            self.manifest.limits,
            all_of_them=request.ignore_eos,
        )
        positions, following = prompt_positions(prompt, self.manifest.positions)
        ends = frozenset(() if request.ignore_eos else self.manifest.generation.eos_token_ids)
        rules = Rules(
            self.rules,
            prompt.token_ids.tolist(),
            penalty=request.sampling.repetition_penalty,
            ends=ends,
            room=room,
        )
        job = Job(
            prompt=prompt,
            positions=positions,
            following=following,
            sampler=Sampler(request.sampling, rules),
            decoder=self.prompts.stream(),
            stops=stops,
            room=room,
            ends=ends,
        )
        spent = time.perf_counter() - started
        return AnswerStream(self.loop, job, lambda: self.load_seconds, started, spent)

    def _prompt(self, request: Request) -> Prompt:
        # Pictures may be anything; the messages are given names for them to hand back.
        names = [Path(f"images[{index}]") for index in range(len(request.images))]
        given = {id(name): picture for name, picture in zip(names, request.images, strict=True)}
        if request.prompt is not None:
            messages: object = simple_message(request.prompt, len(names))
        else:
            messages = list(request.messages or ())
        normal, sources = normalize_messages(
            messages, names, folder=request.folder, files=request.files
        )
        check_images(len(sources), self.manifest.limits)
        # In the plain format a processor takes its pictures one by one, as if each were alone.
        count = 1 if self.prompts.spec.chat_template is None else len(sources)
        prepared = []
        for source in sources:
            picture = given.get(id(source.path), source.path or source.data)
            at = str(source.path) if id(source.path) in given else source.at
            if picture is None:
                raise VlmcError("an image without a source", at=at)
            image = open_image(picture, at=at)
            try:
                prepared.append(prepare(image, self.images, count=count))
            except VlmcError as error:
                raise error.located(at) from error
        return self.prompts.build(normal, together(prepared, self.images))


def _image_spec(bundle: Bundle) -> ImageSpec:
    try:
        spec = ImageSpec.model_validate_json(bundle.read(IMAGES_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        at = f"{IMAGES_FILE}: {place}" if place else IMAGES_FILE
        raise VlmcError(first["msg"], at=at) from error
    return check_spec(spec, at=IMAGES_FILE)
