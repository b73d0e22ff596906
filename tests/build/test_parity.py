"""Bundles of every supported shape against transformers, in float32."""

import numpy as np
import pytest

from tests.build.questions import PLAIN, QUESTIONS
from tests.build.variants import VARIANTS
from tests.checkpoints import MAKERS
from tests.evidence import family_of
from vlmc.errors import VlmcError

pytestmark = pytest.mark.build
TOLERANCE = 1e-4
FAMILIES = tuple(MAKERS)
SHAPES = (
    (),
    ("prefill-seq-len=1",),
    ("prefill-seq-len=7", "split=single"),
    ("prefill-seq-len=320",),
    ("prefill-seq-len=320", "split=single"),
)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the range of the expected values."""
    assert found.shape == expected.shape
    ruled_out = expected < -1e38  # Chameleon's codes, which are never answered
    assert np.array_equal(found[ruled_out], expected[ruled_out])
    found, expected = found[~ruled_out], expected[~ruled_out]
    return float(np.abs(found - expected).max() / (expected.max() - expected.min()))


def compare(workshop, name, question, *overrides):
    model = workshop.model(name, *overrides)
    asked = QUESTIONS[question]
    if workshop.refused(name, question):
        with pytest.raises(VlmcError, match=r"without an image|no chat template|bundle takes 1"):
            model.prompt(asked.messages, images=asked.pictures())
        return
    expected = workshop.expected(name, question)
    prompt = model.prompt(asked.messages, images=asked.pictures())
    assert prompt.token_ids.tolist() == expected.prompt_token_ids
    pairs = [
        (model.image_features(image), rows)
        for image, rows in zip(prompt.images, expected.features, strict=True)
    ]
    pairs.append((model.logits(prompt, expected.forced[:-1]), expected.logits))
    assert max(error(found, wanted) for found, wanted in pairs) < TOLERANCE
    answer = model.generate(asked.messages, images=asked.pictures(), max_new_tokens=24)
    assert list(answer.token_ids) == expected.token_ids


@pytest.mark.parametrize("overrides", SHAPES, ids=" ".join)
@pytest.mark.parametrize("name", FAMILIES)
def test_any_split_and_chunk_size_answers_as_transformers(workshop, name, overrides):
    for question in PLAIN:
        compare(workshop, name, question, *overrides)
    assert workshop.model(name, *overrides).manifest.family == family_of(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_any_kind_of_picture_is_seen_as_transformers_sees_it(workshop, name):
    for question in QUESTIONS.keys() - set(PLAIN):
        compare(workshop, name, question)


@pytest.mark.parametrize("split", ["dual", "single"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_different_layouts_are_answered_together(workshop, name, split):
    from vlmc.runtime import Request

    model = workshop.model(name, "batch-size=3", "prefill-seq-len=8", f"split={split}")
    asked = [question for question in (*PLAIN, "tiny") if not workshop.refused(name, question)]
    requests = [
        Request(
            messages=QUESTIONS[question].messages,
            images=QUESTIONS[question].pictures(),
            max_new_tokens=24,
        )
        for question in asked
    ]
    for question, answer in zip(asked, model.generate_batch(requests), strict=True):
        expected = workshop.expected(name, question)
        assert list(answer.prompt_token_ids) == expected.prompt_token_ids
        assert list(answer.token_ids) == expected.token_ids, question


@pytest.mark.parametrize("name", VARIANTS)
def test_other_checkpoints_answer_as_transformers(workshop, name):
    for question in ("no image", "three images"):
        compare(workshop, name, question)
    if workshop.refused(name, "three images"):
        compare(workshop, name, "landscape")


def test_without_a_template_pictures_are_taken_one_by_one(workshop):
    import torch

    from tests.build.oracle import Oracle

    asked = QUESTIONS["two before"]
    pictures = asked.pictures()
    oracle = Oracle(workshop.checkpoint("llava-onevision-plain"))
    text = "<image>\n" * len(pictures) + asked.words
    inputs = oracle.processor(text=[text], images=pictures, return_tensors="pt")
    expected = oracle.continue_(inputs, [], torch)
    model = workshop.model("llava-onevision-plain")
    found = model.generate(prompt=asked.words, images=pictures, max_new_tokens=24)
    assert list(found.prompt_token_ids) == expected.prompt_token_ids
    assert list(found.token_ids) == expected.token_ids
