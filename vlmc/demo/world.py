"""A generated world: pictures of coloured shapes and a short word, and questions about them.

A picture is a grid of three by three cells. One to four cells hold a shape; a row of cells may hold
a word instead. All of it follows from an integer seed. Lengths are in units of the picture's short
side divided by `GRID_UNITS`, so one scene can be drawn at any size.
"""

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from vlmc.demo import font
from vlmc.demo.words import SEEN_WORDS, UNSEEN_WORDS

Split = Literal["train", "held-out"]

GRID_UNITS = 72
CELL_UNITS = 24
DOT_UNITS = 2
ADVANCE_UNITS = 12

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "green": (40, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 205, 30),
    "purple": (130, 50, 160),
    "orange": (245, 130, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
ROWS = ("top", "middle", "bottom")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHORT_SIDES = (72, 96, 112, 144, 160, 200)


@dataclass(frozen=True)
class Thing:
    """One coloured shape: `cell` counts the grid from the top left, `x`, `y`, `radius` in units."""

    shape: str
    colour: str
    cell: int
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Word:
    """A written word: `row` is 0, 1 or 2 from the top; `x`, `y` its top left corner in units."""

    text: str
    row: int
    x: float
    y: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What one picture shows; `things` in reading order, `size` its (width, height) in pixels."""

    seed: int
    things: tuple[Thing, ...]
    word: Word | None
    background: tuple[int, int, int]
    size: tuple[int, int]

    def content(self) -> str:
        """Which shapes, colours, places and letters are there, without the details of drawing."""
        things = ",".join(f"{thing.colour} {thing.shape} {thing.cell}" for thing in self.things)
        return f"{things}|{self.word.text} {self.word.row}" if self.word else things

    def split(self) -> Split:
        """The side this content belongs to: one content in ten, and all unseen words, held out."""
        unseen = self.word is not None and self.word.text in UNSEEN_WORDS
        return "held-out" if unseen or self.is_tenth() else "train"

    def is_tenth(self) -> bool:
        """Whether the hash of the content falls in the tenth that is held out."""
        digest = hashlib.sha256(self.content().encode()).digest()
        return int.from_bytes(digest[:8], "big") % 10 == 0


class Dice:
    """Seeded chance, from `random.Random.random` only: its sequence is the same in every Python."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def below(self, n: int) -> int:
        """An integer of 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, options: tuple[str, ...] | str) -> str:
        """One of the options."""
        return options[self.below(len(options))]

    def between(self, low: float, high: float) -> float:
        """A number of low to high."""
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return self._random() < probability

    def sample(self, n: int, count: int) -> list[int]:
        """That many different integers of 0 to n - 1."""
        left = list(range(n))
        return [left.pop(self.below(len(left))) for _ in range(count)]


def scene(seed: int, *, split: Split = "held-out", loose: bool = False) -> Scene:
    """The scene of a seed; the contents of the two splits never meet, whatever the seeds.

    Args:
        seed: any integer.
        split: the side of the split it comes from.
        loose: puts the word anywhere in its row, where its letters are harder to read; otherwise
            each letter stands in a column of `ADVANCE_UNITS`. Training starts with loose words.
    """
    dice = Dice(f"{split} {seed}")
    while True:
        drawn = _draw(dice, seed, split, loose)
        if drawn.split() == split and (split == "train" or drawn.is_tenth()):
            return drawn


def _draw(dice: Dice, seed: int, split: Split, loose: bool) -> Scene:
    word = _word(dice, split, loose) if dice.chance(0.6) else None
    free = [cell for cell in range(9) if word is None or cell // 3 != word.row]
    cells = sorted(free[i] for i in dice.sample(len(free), 1 + dice.below(4)))
    colours: tuple[str, ...] = tuple(COLOURS)
    shapes: tuple[str, ...] = SHAPES
    if dice.chance(0.3):  # repeated shapes and colours, so that there is something to count
        colours = tuple(colours[i] for i in dice.sample(6, 2))
    if dice.chance(0.3):
        shapes = tuple(shapes[i] for i in dice.sample(6, 2))
    things = tuple(_thing(dice, cell, dice.pick(colours), dice.pick(shapes)) for cell in cells)
    light = 215 + dice.below(36)
    background = _shifted(dice, (light, light, light), 5)
    short = SHORT_SIDES[dice.below(len(SHORT_SIDES))]
    long = short + dice.below(short // 2) if dice.chance(0.3) else short
    size = (long, short) if dice.chance(0.5) else (short, long)
    return Scene(seed, things, word, background, size)


def _word(dice: Dice, split: Split, loose: bool) -> Word:
    if split == "train":
        letters = "".join(dice.pick(LETTERS) for _ in range(3 + dice.below(3)))
        text = letters if dice.chance(0.6) else dice.pick(SEEN_WORDS)
    else:
        text = dice.pick(UNSEEN_WORDS if dice.chance(0.5) else SEEN_WORDS)
    width = (len(text) - 1) * ADVANCE_UNITS + font.WIDTH * DOT_UNITS
    row = dice.below(3)
    if loose:
        x = dice.between(1, GRID_UNITS - width - 1)
    else:
        column = dice.below(GRID_UNITS // ADVANCE_UNITS - len(text) + 1)
        x = column * ADVANCE_UNITS + dice.between(0, 1.8)
    y = row * CELL_UNITS + dice.between(2, CELL_UNITS - font.HEIGHT * DOT_UNITS - 2)
    ink = dice.below(60)
    return Word(text, row, x, y, _shifted(dice, (ink, ink, ink), 5))


def _thing(dice: Dice, cell: int, colour: str, shape: str) -> Thing:
    radius = dice.between(7, 10.5)
    slack = CELL_UNITS / 2 - radius - 0.5
    x = (cell % 3 + 0.5) * CELL_UNITS + dice.between(-slack, slack)
    y = (cell // 3 + 0.5) * CELL_UNITS + dice.between(-slack, slack)
    return Thing(shape, colour, cell, x, y, radius, _shifted(dice, COLOURS[colour], 12))


def _shifted(dice: Dice, rgb: tuple[int, int, int], by: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, c - by + dice.below(2 * by + 1))) for c in rgb)
    return red, green, blue


def render(scene: Scene) -> Image.Image:
    """Draws the scene: an RGB image of `scene.size` pixels, the grid in its central square."""
    image = Image.new("RGB", scene.size, scene.background)
    canvas = ImageDraw.Draw(image)
    short = min(scene.size)
    left, top = ((side - short) // 2 for side in scene.size)
    scale = short / GRID_UNITS
    for thing in scene.things:
        x, y, radius = left + thing.x * scale, top + thing.y * scale, thing.radius * scale
        if thing.shape == "circle":
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=thing.rgb)
        else:
            outline = _OUTLINES[thing.shape]
            canvas.polygon([(x + radius * u, y + radius * v) for u, v in outline], fill=thing.rgb)
    if scene.word is not None:
        _write(canvas, scene.word, left, top, scale)
    return image


def _write(canvas: ImageDraw.ImageDraw, word: Word, left: int, top: int, scale: float) -> None:
    for place, letter in enumerate(word.text):
        for first, end, row in font.GLYPHS[letter]:
            x = word.x + place * ADVANCE_UNITS
            y = word.y + row * DOT_UNITS
            box = (
                left + round((x + first * DOT_UNITS) * scale),
                top + round(y * scale),
                left + round((x + end * DOT_UNITS) * scale) - 1,
                top + round((y + DOT_UNITS) * scale) - 1,
            )
            canvas.rectangle(box, fill=word.rgb)


def _star() -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = 1.0 if corner % 2 == 0 else 0.42
        angle = math.pi * corner / 5
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return points


_THIRD = 0.36
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.95), (1, 0.85), (-1, 0.85)],
    "diamond": [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)],
    "star": _star(),
    "cross": [
        (-_THIRD, -1),
        (_THIRD, -1),
        (_THIRD, -_THIRD),
        (1, -_THIRD),
        (1, _THIRD),
        (_THIRD, _THIRD),
        (_THIRD, 1),
        (-_THIRD, 1),
        (-_THIRD, _THIRD),
        (-1, _THIRD),
        (-1, -_THIRD),
        (-_THIRD, -_THIRD),
    ],
}
