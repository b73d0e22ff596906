"""Fewer bits: the programs run, and stay as near to transformers as those bits allow."""

import json

import numpy as np
import pytest

from tests.build.questions import QUESTIONS
from tests.build.test_parity import error
from tests.checkpoints import MAKERS

pytestmark = pytest.mark.build
# Largest logit error relative to its range that random weights of width 64 may show.
PRECISIONS = {
    "vision=fp16": 0.01,
    "vision=int8": 0.1,
    "language=fp16": 0.01,
    "language=int8": 0.1,
    "language=int4": 0.5,
    "kv-cache=fp16": 0.01,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name",
    [
        "llava-clip-llama",
        "llava-next-clip-mistral",
        "internvl",
        "qwen2-vl",
        "qwen2.5-vl",
        "qwen3-vl-moe",
        "idefics3",
        "gemma3",
        "gemma4",
        "narrow-heads",
    ],
)
def test_each_part_may_be_stored_in_fewer_bits(workshop, name, precision):
    model = workshop.model(name, f"precision.{precision}")
    asked, expected = QUESTIONS["three images"], workshop.expected(name, "three images")
    prompt = model.prompt(asked.messages, images=asked.pictures())
    logits = model.logits(prompt, expected.forced[:-1])
    assert np.isfinite(logits).all()
    assert 0 < error(logits, expected.logits) < PRECISIONS[precision]


def test_the_report_says_what_the_bits_cost(workshop):
    made = workshop.build("llava-clip-llama", "precision=int4", "checks.reference=auto")
    report = json.loads((made.bundle / "report/build.json").read_text(encoding="utf-8"))
    questions = report["check"]["questions"]
    assert [q["question"] for q in questions] == ["text", "image", "two-images"]
    assert all(1e-5 < q["logit_error"] < 0.5 for q in questions)
    assert report["weights"]["int4_panel"]["largest-relative-error"] > 0.01


@pytest.mark.parametrize("name", MAKERS)
def test_every_family_is_calibrated_and_compared_at_eight_bits(workshop, name):
    made = workshop.build(name, "precision=int8", "checks.reference=auto")
    report = json.loads((made.bundle / "report/build.json").read_text(encoding="utf-8"))
    assert report["calibration"]["questions"] >= 1
    assert report["check"]["questions"]
    assert all(q["logit_error"] < 0.2 for q in report["check"]["questions"])
