"""Draws the sample pictures: `python -m vlmc.demo.draw_samples`. All of them are held out."""

import argparse
import json
from pathlib import Path

from vlmc.demo.questions import one_of_each
from vlmc.demo.score import HELD_OUT_SEED
from vlmc.demo.world import render, scene

SAMPLES_FOLDER = Path(__file__).parent / "samples"
"""The pictures that come with the package, and `questions.json` about them."""


def main() -> None:
    """Parses the command line and writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLES_FOLDER)
    parser.add_argument("--count", type=int, default=4)
    options = parser.parse_args()
    write_samples(options.out, options.count)


def write_samples(folder: Path, count: int) -> None:
    """Writes `count` PNG pictures named by their word, and their questions with the answers."""
    folder.mkdir(parents=True, exist_ok=True)
    asked: dict[str, list[dict[str, str]]] = {}
    seed = HELD_OUT_SEED - 1
    while len(asked) < count:
        seed += 1
        shown = scene(seed)
        name = f"{shown.word.text.lower()}.png" if shown.word else ""
        if not name or name in asked or min(shown.size) < 144 or len(shown.things) < 2:
            continue
        render(shown).save(folder / name, optimize=True)
        asked[name] = [
            {"kind": kind, "question": question, "answer": answer}
            for question, answer, kind in one_of_each(shown)
        ]
    text = json.dumps(asked, indent=2) + "\n"
    (folder / "questions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
