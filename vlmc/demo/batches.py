"""Training batches of the demo world, in numpy: pictures, token ids, positions and masks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmc.demo import font
from vlmc.demo.folder import (
    ASSISTANT,
    BOS,
    EOS,
    GRID_SIDE,
    IMAGE,
    IMAGE_SIDE,
    IMAGE_TOKENS,
    PAD,
    PATCH_SIDE,
    SYSTEM,
    USER,
)
from vlmc.demo.questions import KINDS, NO_PICTURE, Question, questions
from vlmc.demo.world import (
    ADVANCE_UNITS,
    COLOURS,
    DOT_UNITS,
    LETTERS,
    SHAPES,
    Dice,
    Scene,
    render,
    scene,
)

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You answer questions about pictures in a few words.",
)
"""What a tenth of the training conversations start with."""

_THINGS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """`rows` conversations of at most `length` tokens, `pictures` of them with a picture.

    Attributes:
        pixels: uint8 `[pictures, side, side, 3]`, resized and cropped as the processor does it.
        ids: int64 `[rows, length]`, padded on the right.
        positions: int64 `[rows, length]`.
        mask: bool `[rows, 1, length, length]`, true where a token may look.
        targets: int64 `[rows, length]`, the next token where it is to be learned, else -100.
        things: int64 `[pictures, patches]`, 0 or 1 + the colour and shape centred in that patch.
        letters: int64 `[pictures, patches]`, 0 or 1 + the letter centred in that patch.
    """

    pixels: Array
    ids: Array
    positions: Array
    mask: Array
    targets: Array
    things: Array
    letters: Array


class Batcher:
    """Makes the batch of a step: always the same for the same step and options.

    `rows` pictures, at most `turns` questions about each, words `loose` as in `world.scene`.
    """

    def __init__(self, tokenizer: Any, rows: int, turns: int, *, loose: bool = False) -> None:
        self._rows = rows
        self._turns = turns
        self._loose = loose

        @lru_cache(maxsize=20_000)
        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        self._encode = encode

    def batch(self, step: int) -> Batch:
        """The batch of training step `step`."""
        pixels, things, letters, conversations = [], [], [], []
        for row in range(self._rows):
            dice = Dice(f"row {step} {row}")
            drawn = scene(step * self._rows + row, split="train", loose=self._loose)
            with_picture = not dice.chance(0.02)
            if with_picture:
                pixels.append(square(render(drawn)))
                things.append(_thing_labels(drawn))
                letters.append(_letter_labels(drawn))
            conversations.append(self._conversation(dice, drawn, with_picture))
        ids, positions, mask, targets = _padded(conversations)
        return Batch(
            np.stack(pixels), ids, positions, mask, targets, np.stack(things), np.stack(letters)
        )

    def _conversation(self, dice: Dice, drawn: Scene, with_picture: bool) -> "_Conversation":
        asked = _some(dice, questions(drawn), self._turns)
        prefix = [BOS]
        if dice.chance(0.1):
            text = SYSTEM_TEXTS[dice.below(len(SYSTEM_TEXTS))]
            prefix += [SYSTEM, *self._encode(text)]
        prefix.append(USER)
        if with_picture:
            prefix += [IMAGE] * IMAGE_TOKENS
        turns = []
        for one in asked:
            answer = one.answer if with_picture else NO_PICTURE
            question = [*self._encode(one.question), ASSISTANT]
            turns.append((question, [*self._encode(answer), EOS]))
        return _Conversation(prefix, turns, apart=dice.chance(0.7))


@dataclass(frozen=True)
class _Conversation:
    """A prefix and turns (question, answer); `apart`: each turn sees the prefix and itself only."""

    prefix: list[int]
    turns: list[tuple[list[int], list[int]]]
    apart: bool

    def laid_out(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Per token: id, position, turn (0 for what every later token sees), target."""
        ids, positions = list(self.prefix), list(range(len(self.prefix)))
        groups, targets = [0] * len(ids), [-100] * len(ids)
        for number, (question, answer) in enumerate(self.turns):
            if number and not self.apart:
                question = [USER, *question]
            turn = question + answer
            start = len(self.prefix) if self.apart else len(ids)
            ids += turn
            positions += range(start, start + len(turn))
            groups += [number + 1 if self.apart else 0] * len(turn)
            targets += [-100] * (len(question) - 1) + answer + [-100]
        return ids, positions, groups, targets


def _padded(conversations: list[_Conversation]) -> tuple[Array, Array, Array, Array]:
    laid = [conversation.laid_out() for conversation in conversations]
    rows, length = len(laid), max(len(ids) for ids, *_ in laid)
    ids = np.full((rows, length), PAD, np.int64)
    positions = np.zeros((rows, length), np.int64)
    groups = np.full((rows, length), -1, np.int64)
    targets = np.full((rows, length), -100, np.int64)
    for row, columns in enumerate(laid):
        for array, column in zip((ids, positions, groups, targets), columns, strict=True):
            array[row, : len(column)] = column
    same = groups[:, :, None] == groups[:, None, :]
    shared = (groups == 0)[:, None, :]
    mask = np.tri(length, dtype=bool) & (same | shared)
    return ids, positions, mask[:, None], targets


def _some(dice: Dice, asked: list[Question], count: int) -> list[Question]:
    """`count` questions, the kinds as equally often as there are questions of them."""
    kinds = {kind: [one for one in asked if one.kind == kind] for kind in KINDS}
    picked: list[Question] = []
    while len(picked) < count and any(kinds.values()):
        for kind in KINDS:
            if kinds[kind]:
                picked.append(kinds[kind].pop(dice.below(len(kinds[kind]))))
    order = dice.sample(len(picked), len(picked))
    return [picked[i] for i in order][:count]


def square(image: Image.Image) -> Array:
    """The processor's resize and crop: uint8 `[IMAGE_SIDE, IMAGE_SIDE, 3]`."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    other = int(IMAGE_SIDE * long / short)
    size = (IMAGE_SIDE, other) if width <= height else (other, IMAGE_SIDE)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = ((side - IMAGE_SIDE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + IMAGE_SIDE, left : left + IMAGE_SIDE]


def _patch(x: float, y: float) -> int:
    return int(y // PATCH_SIDE) * GRID_SIDE + int(x // PATCH_SIDE)


def _thing_labels(drawn: Scene) -> Array:
    labels = np.zeros(IMAGE_TOKENS, np.int64)
    for thing in drawn.things:
        labels[_patch(thing.x, thing.y)] = 1 + _THINGS.index(f"{thing.colour} {thing.shape}")
    return labels


def _letter_labels(drawn: Scene) -> Array:
    labels = np.zeros(IMAGE_TOKENS, np.int64)
    if drawn.word is not None:
        y = drawn.word.y + font.HEIGHT * DOT_UNITS / 2
        for place, letter in enumerate(drawn.word.text):
            x = drawn.word.x + place * ADVANCE_UNITS + font.WIDTH * DOT_UNITS / 2
            labels[_patch(x, y)] = 1 + LETTERS.index(letter)
    return labels
