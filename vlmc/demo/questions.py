"""Questions about a scene of the demo world, each with its one right answer."""

from collections import Counter
from typing import NamedTuple

from vlmc.demo.world import COLOURS, PLACES, ROWS, SHAPES, Dice, Scene, Thing

KINDS = ("colour", "shape", "count", "position", "read", "describe")

NO_PICTURE = "There is no picture."
NO_WORD = "There is no word."

_READ = ("What does the word say?", "Read the word.", "What is written in the picture?")
_DESCRIBE = ("Describe the picture.", "What is in the picture?", "What do you see?")


class Question(NamedTuple):
    """A question, its answer, and which of `KINDS` it is."""

    question: str
    answer: str
    kind: str


def questions(scene: Scene) -> list[Question]:
    """Every kind of question that has one answer here; wording and choice follow from the seed.

    A kind may come several times. Counting, reading and describing are always among them.
    """
    dice = Dice(f"questions {scene.seed} {scene.content()}")
    spelling = "color" if dice.chance(0.25) else "colour"
    shapes = Counter(thing.shape for thing in scene.things)
    colours = Counter(thing.colour for thing in scene.things)
    pairs = Counter((thing.colour, thing.shape) for thing in scene.things)
    found = []
    for thing in scene.things:
        place = _at(PLACES[thing.cell])
        if shapes[thing.shape] == 1:
            found.append((f"What {spelling} is the {thing.shape}?", thing.colour, "colour"))
            found.append((f"Where is the {thing.shape}?", PLACES[thing.cell], "position"))
        found.append((f"What {spelling} is the shape {place}?", thing.colour, "colour"))
        if colours[thing.colour] == 1:
            found.append((f"What shape is {thing.colour}?", thing.shape, "shape"))
        found.append((f"What shape is {place}?", thing.shape, "shape"))
        found.append((f"What is {place}?", _named(thing), "shape"))
        if pairs[thing.colour, thing.shape] == 1:
            where = f"Where is the {thing.colour} {thing.shape}?"
            found.append((where, PLACES[thing.cell], "position"))
    if scene.word:
        found.append(("Where is the word?", ROWS[scene.word.row], "position"))
    found.append(("How many shapes are there?", str(len(scene.things)), "count"))
    counted = scene.things[dice.below(len(scene.things))]
    for some in (counted.shape, dice.pick(SHAPES)):
        found.append((f"How many {_plural(some)} are there?", str(shapes[some]), "count"))
    for some in (counted.colour, dice.pick(tuple(COLOURS))):
        found.append((f"How many {some} shapes are there?", str(colours[some]), "count"))
    found.append((dice.pick(_READ), scene.word.text if scene.word else NO_WORD, "read"))
    found.append((dice.pick(_DESCRIBE), describe(scene), "describe"))
    return [Question(*one) for one in dict.fromkeys(found)]


def one_of_each(scene: Scene) -> list[Question]:
    """One question of each kind that the scene has, picked by the scene's seed."""
    dice = Dice(f"pick {scene.seed} {scene.content()}")
    asked = questions(scene)
    picked = []
    for kind in KINDS:
        of_kind = [one for one in asked if one.kind == kind]
        if of_kind:
            picked.append(of_kind[dice.below(len(of_kind))])
    return picked


def describe(scene: Scene) -> str:
    """One sentence naming the shapes in reading order and the word."""
    names = [_named(thing) for thing in scene.things]
    text = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    if scene.word:
        text += f" with the word {scene.word.text}"
    return f"{text[0].upper()}{text[1:]}."


def _named(thing: Thing) -> str:
    return f"{'an' if thing.colour[0] == 'o' else 'a'} {thing.colour} {thing.shape}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _at(place: str) -> str:
    return f"in the {place}" if place == "middle" else f"at the {place}"
