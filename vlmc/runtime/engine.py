"""The programs of one bundle and their cache: encode an image, prefill a slot, decode all."""

import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlmc.backends import BACKENDS, OpenOptions, Session
from vlmc.backends.threads import busy, default_threads
from vlmc.backends.together import Together
from vlmc.bundle.manifest import ProgramSpec, TensorSpec, present_name
from vlmc.bundle.store import Bundle
from vlmc.errors import VlmcError
from vlmc.runtime.attention import decode_bias, prefill_bias, whole_spans
from vlmc.runtime.cache import Cache
from vlmc.runtime.features import Chunk, cut, first_rows, gather, needed_images
from vlmc.runtime.interface import FEATURES, check_outputs, vision_inputs
from vlmc.runtime.step import Step
from vlmc.runtime.types import Array, PreparedImage, Prompt
from vlmc.schema import lookup


@dataclass
class Features:
    """Image features of one prompt, filled as its chunks need them.

    Attributes:
        rows: ``[tokens, W]`` by image, see ``Engine.encode``.
        seconds: Spent encoding, so far; 0 in the single split, where it is part of prefill.
    """

    rows: dict[int, Array] = field(default_factory=dict)
    seconds: float = 0.0


class Engine:
    """Runs a bundle's programs; knows nothing of text, requests or sampling.

    One thread at a time. The vision program is opened when the first image comes.

    Args:
        bundle: As ``read_bundle`` returns it.
        threads: Of each program; None is ``default_threads()``.
        spin: See ``OpenOptions``; None: where no other process wants these cores.
        portable: See ``OpenOptions``.
        strict: See ``OpenOptions``.
        pieces: See ``OpenOptions``.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        spin: bool | None = None,
        portable: bool = False,
        strict: bool = False,
        pieces: Together | None = None,
    ) -> None:
        self.bundle = bundle
        self.limits = bundle.manifest.limits
        self._masks = {mask.input: mask for mask in bundle.manifest.masks if mask.input}
        self.threads = default_threads() if threads is None else threads
        self.load_seconds = 0.0
        self.spin = not busy(self.threads) if spin is None else spin
        self._portable, self._strict = portable, strict
        self._pieces = pieces
        self.single = bundle.manifest.split == "single"
        name = "model" if self.single else "language"
        self.program = bundle.manifest.programs[name]
        self._inputs = {spec.name: spec for spec in self.program.inputs}
        at = str(bundle.folder)
        self._vision_names = vision_inputs(self.program, self._masks, single=self.single, at=at)
        self._features = [self._inputs[name] for name in FEATURES if name in self._inputs]
        check_outputs(self.program, single=self.single, at=at)
        self._session = self._open(self.program, shrink=False)
        self._vision: Session | None = None
        self.cache = Cache(self.program, self.limits)
        width = sum(_width(spec) for spec in self._features)
        self._blank = np.zeros((1, width), self._features[0].dtype)
        self._steps: dict[int, Step] = {}  # that decode, by their rows

    @property
    def kernels(self) -> str:
        """What computes the decoder, for a reader."""
        return self._session.kernels

    @property
    def portable(self) -> str:
        """Why the portable programs are used though the bundle has faster ones; else empty."""
        return self._session.portable

    def chunks(self, prompt: Prompt) -> tuple[Chunk, ...]:
        """The steps in which a prompt is prefilled."""
        whole = whole_spans(prompt, self.bundle.manifest.masks)
        size = self.limits.prefill_seq_len
        return cut(prompt, size, at_images=self.single, whole=whole)

    def encode(self, image: PreparedImage, slot: int = 0, place: int = 0) -> Array:
        """Image features ``[tokens, W]`` of one image, deep-stack ones beside the first ``H``.

        The single split has no program of its own for this: a throw-away token is prefilled
        with it, at a ``place`` of a ``slot`` that no answer under way has written.

        Raises:
            VlmcError: The program gave another number of rows than the prompt has places.
        """
        if self.single:
            lengths = np.full(1, place + 1, np.int32)
            feeds = self._token_feeds(np.zeros((1, 1), np.int64), np.full((1, 1), -1), 0, lengths)
            feeds |= self._vision_feeds(image) | self._feature_feeds(self._blank)
            feeds |= {name: np.zeros((1, 1, 0, 0), np.float32) for name in self._masks}
            self.cache.forget(slot, place)
            states = self.cache.states(slot)
            outputs = self._run(slot, slot + 1, feeds)
            self.cache.restore(slot, states)
            return self._made(outputs, image)
        return self._made(self.open_vision().run(image.tensors), image)

    def open_vision(self) -> Session:
        """The dual split's vision program, opened the first time."""
        if self._vision is None:
            self._vision = self._open(self.bundle.manifest.programs["vision"], shrink=True)
        return self._vision

    def prefill(
        self,
        slot: int,
        prompt: Prompt,
        positions: NDArray[np.int64],
        chunk: Chunk,
        features: Features,
        key: bytes | None = None,
    ) -> Array:
        """Runs one chunk of a prompt into a slot whose cache ends at ``chunk.start``.

        Args:
            slot: Row of the cache.
            prompt: The whole prompt.
            positions: ``[L]`` or ``[3, L]`` of the whole prompt.
            chunk: One of ``chunks``.
            features: Of this prompt; images the chunk needs are encoded into it.
            key: The chunk's, for the cache to remember; None: it does not.

        Returns:
            Logits ``[V]`` of the chunk's last token.
        """
        tokens = prompt.token_ids[None, chunk.start : chunk.stop]
        lengths = np.array([chunk.stop], np.int32)
        here = positions[..., None, chunk.start : chunk.stop]
        if chunk.image is not None:
            index = prompt.feature_index[chunk.start : chunk.stop]
            local = np.where(index >= 0, index - first_rows(prompt)[chunk.image], index)
            rows = self._blank
        else:
            for image in needed_images(prompt, chunk):
                if image not in features.rows:
                    self._encode_into(features, image, prompt, slot, chunk.start)
            rows, local = gather(prompt, chunk, features.rows, self._blank)
        feeds = self._token_feeds(tokens, local[None], here, lengths)
        for name, mask in self._masks.items():
            feeds[name] = prefill_bias(mask, prompt, chunk.start, chunk.stop)
        current = None if chunk.image is None else prompt.images[chunk.image]
        feeds |= self._feature_feeds(rows) | self._vision_feeds(current)
        self.cache.forget(slot, chunk.start)
        if not chunk.start:
            self.cache.restore(slot, {})
        outputs = self._run(slot, slot + 1, feeds)
        if key is not None:
            self.cache.remember(slot, chunk.stop, key)
        if chunk.image is not None and current is not None:
            features.rows[chunk.image] = self._made(outputs, current)
        return np.asarray(outputs["logits"][0])

    def decode(self, tokens: list[int], positions: list[int], lengths: list[int]) -> Array:
        """One token for each of the first ``len(tokens)`` slots.

        Args:
            tokens: The token each row is given.
            positions: Its position (M-RoPE: the same along all three axes).
            lengths: Length of each row's cache before this step.

        Returns:
            Logits ``[rows, V]``, until the next step of as many rows writes them anew.
        """
        rows = len(tokens)
        if rows not in self._steps:
            self._steps[rows] = self._new_step(rows)
        step = self._steps[rows]
        step.fill(tokens, positions, lengths)
        feeds = step.feeds
        if self._masks:  # their sizes change
            places = np.array(lengths, np.int64)
            biases = {name: decode_bias(mask, places) for name, mask in self._masks.items()}
            feeds = {**feeds, **biases}
        self._session.run(feeds, step.written)
        return step.written["logits"]

    def _new_step(self, rows: int) -> Step:
        apart = np.full((rows, 1), -1)
        feeds = self._token_feeds(apart, apart, 0, np.zeros(rows, np.int32))
        feeds |= self._feature_feeds(self._blank) | self._vision_feeds(None)
        [spec] = (spec for spec in self.program.outputs if spec.name == "logits")
        written = {"logits": np.empty((rows, *_row(spec)), spec.dtype)}
        return Step(feeds | self.cache.inputs(0, rows), self.cache.outputs(0, rows) | written)

    def _token_feeds(
        self, ids: Array, index: Array, positions: Array | int, ends: Array
    ) -> dict[str, Array]:
        spec = self._inputs["position_ids"]
        shape = (*spec.shape[:-2], *ids.shape)  # an axis more where positions have several
        return {
            "input_ids": np.ascontiguousarray(ids, np.int64),
            "feature_index": np.ascontiguousarray(index, np.int64),
            "position_ids": np.ascontiguousarray(np.broadcast_to(positions, shape), np.int64),
            "sequence_lengths": ends,
            "total_length": np.array(ends.max(), np.int32),
        }

    def _feature_feeds(self, rows: Array) -> dict[str, Array]:
        """Rows ``[F, W]`` as the language program takes them."""
        ends = np.cumsum([_width(spec) for spec in self._features])
        parts = np.split(rows, ends[:-1], axis=1)
        return {
            spec.name: np.ascontiguousarray(part).reshape(len(rows), *_row(spec))
            for spec, part in zip(self._features, parts, strict=True)
        }

    def _vision_feeds(self, image: PreparedImage | None) -> dict[str, Array]:
        """The single split's vision inputs: one image's, or empty ones that are not read."""
        if not self.single:
            return {}
        feeds = {"run_vision": np.array([image is not None])}
        if image is not None:
            return feeds | image.tensors
        for name in self._vision_names:
            spec = self._inputs[name]
            sizes = [0 if isinstance(size, str) else size for size in spec.shape]
            feeds[name] = np.zeros(sizes, spec.dtype)
        return feeds

    def _run(self, start: int, stop: int, feeds: dict[str, Array]) -> dict[str, Array]:
        """Runs the program over slots ``start`` to ``stop - 1``."""
        states, written = self.cache.inputs(start, stop), self.cache.outputs(start, stop)
        return self._session.run(feeds | states, written)

    def _encode_into(
        self, features: Features, image: int, prompt: Prompt, slot: int, place: int
    ) -> None:
        loaded = self.load_seconds
        started = time.perf_counter()
        features.rows[image] = self.encode(prompt.images[image], slot, place)
        opening = self.load_seconds - loaded
        features.seconds += time.perf_counter() - started - opening

    def _made(self, outputs: dict[str, Array], image: PreparedImage) -> Array:
        """Rows ``[tokens, W]`` of an image from what a program gave."""
        names = [present_name(s.name) if self.single else s.name for s in self._features]
        parts = [outputs[name].reshape(len(outputs[name]), -1) for name in names]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        if rows.shape != (image.rows, self._blank.shape[1]):
            raise VlmcError(
                f"the vision program gave features {list(rows.shape)} "
                f"for an image of {image.rows} rows",
                at=str(self.bundle.folder),
            )
        return rows.astype(self._blank.dtype, copy=False)

    def _open(self, program: ProgramSpec, *, shrink: bool) -> Session:
        started = time.perf_counter()
        backend = lookup(
            BACKENDS, self.bundle.manifest.backend, kind="backend", at=str(self.bundle.folder)
        )
        options = OpenOptions(
            threads=self.threads,
            spin=self.spin,
            shrink=shrink,
            portable=self._portable,
            strict=self._strict,
            pieces=self._pieces,
        )
        session = backend.open(self.bundle.folder, program, options)
        self.load_seconds += time.perf_counter() - started
        return session


def _row(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape[1:])


def _width(spec: TensorSpec) -> int:
    return math.prod(_row(spec))
