"""The demo world is the same everywhere, its splits never meet, its questions have one answer."""

import hashlib
import subprocess
import sys

import pytest
from PIL import Image

from vlmc.demo.questions import KINDS, NO_WORD, describe, one_of_each, questions
from vlmc.demo.score import is_right, score
from vlmc.demo.words import SEEN_WORDS, UNSEEN_WORDS, WORDS
from vlmc.demo.world import COLOURS, PLACES, SHAPES, render, scene

SPLITS = ("train", "held-out")


@pytest.mark.parametrize("split", SPLITS)
def test_scene_follows_from_its_seed(split):
    for seed in range(100):
        first, second = scene(seed, split=split), scene(seed, split=split)
        assert first == second
        assert render(first).tobytes() == render(second).tobytes()
        assert questions(first) == questions(second)


def test_world_has_not_moved_since_the_model_was_trained():
    digest = hashlib.sha256()
    for seed in range(300):
        for split in SPLITS:
            digest.update(repr(scene(seed, split=split)).encode())
            digest.update(repr(questions(scene(seed, split=split))).encode())
    assert digest.hexdigest()[:16] == "9ac133cb0e8c9964"


def test_splits_never_meet():
    train = {scene(seed, split="train").content() for seed in range(3000)}
    held_out = {scene(seed, split="held-out").content() for seed in range(3000)}
    assert len(held_out) > 2000
    assert not train & held_out


def test_every_scene_is_on_the_side_it_says():
    for split in SPLITS:
        assert all(scene(seed, split=split).split() == split for seed in range(300))


def test_unseen_words_are_never_trained():
    trained = {s.word.text for s in (scene(n, split="train") for n in range(3000)) if s.word}
    measured = {s.word.text for s in (scene(n, split="held-out") for n in range(3000)) if s.word}
    assert not trained & set(UNSEEN_WORDS)
    assert set(UNSEEN_WORDS) <= measured


def test_words_are_short_and_capital():
    assert len(set(WORDS)) == len(WORDS) == len(SEEN_WORDS) + len(UNSEEN_WORDS)
    assert all(3 <= len(word) <= 5 and word.isalpha() and word.isupper() for word in WORDS)


def test_picture_shows_each_shape_in_its_colour_and_place():
    for seed in range(200):
        shown = scene(seed)
        image = render(shown)
        assert image.mode == "RGB"
        assert image.size == shown.size
        short = min(image.size)
        left, top = ((side - short) // 2 for side in image.size)
        for thing in shown.things:
            column, row = int(thing.x // 24), int(thing.y // 24)
            assert row * 3 + column == thing.cell
            at = (left + int(thing.x * short / 72), top + int(thing.y * short / 72))
            assert image.getpixel(at) == thing.rgb


def test_questions_have_one_answer_of_the_right_kind():
    for seed in range(300):
        shown = scene(seed)
        asked = questions(shown)
        assert len({one.question for one in asked}) == len(asked)
        assert {one.kind for one in asked} <= set(KINDS)
        for one in asked:
            if one.kind == "colour":
                assert one.answer in COLOURS
            if one.kind == "position":
                assert one.answer in PLACES
            if one.kind == "count":
                assert one.answer in ("0", "1", "2", "3", "4")
            if one.kind == "shape":
                assert one.answer.split()[-1] in SHAPES
            if one.kind == "read":
                assert one.answer == (shown.word.text if shown.word else NO_WORD)
            if one.kind == "describe":
                assert one.answer == describe(shown)


def test_one_of_each_asks_every_kind_there_is():
    for seed in range(200):
        shown = scene(seed)
        kinds = [one.kind for one in one_of_each(shown)]
        assert kinds == [k for k in KINDS if any(one.kind == k for one in questions(shown))]


@pytest.mark.parametrize(
    ("answer", "right"), [(" Red\n", True), ("red.", False), ("a red circle", False), ("", False)]
)
def test_an_answer_is_right_only_as_a_whole(answer, right):
    assert is_right(answer, "red") is right


def test_score_counts_what_it_was_told():
    known = {}
    for seed in range(50):
        known[render(scene(seed)).tobytes()] = {
            one.question: one.answer for one in questions(scene(seed))
        }

    def answers(image: Image.Image, asked):
        return [known[image.tobytes()][question] for question in asked]

    perfect = score(answers, pictures=50, seed=0)
    assert perfect["overall"]["accuracy"] == 1
    assert perfect["misses"] == []
    assert perfect["kinds"]["count"]["asked"] == 50
    silent = score(lambda image, asked: [""] * len(asked), pictures=50, seed=0)
    assert silent["overall"] == {"right": 0, "asked": perfect["overall"]["asked"], "accuracy": 0.0}
    assert len(silent["misses"]) == silent["overall"]["asked"]


def test_world_and_score_need_no_torch():
    modules = "batches, draw_samples, evaluate, folder, questions, score, train, world"
    heavy = "{'torch', 'transformers'} & {*sys.modules}"
    code = f"import sys; from vlmc.demo import {modules}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
