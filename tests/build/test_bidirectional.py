"""Decoders that attend both ways: crops of a picture, and prompts that a template writes."""

import numpy as np
import pytest

from tests.build.questions import IMAGE, Question, user
from tests.build.test_parity import TOLERANCE, error

pytestmark = pytest.mark.build
LONG = Question(
    [user(IMAGE, "first", IMAGE, "and", IMAGE, "which is taller?")],
    ((640, 257, "RGB"), (70, 64, "RGB"), (280, 900, "RGB")),
)


@pytest.mark.parametrize("split", ["dual", "single"])
def test_pictures_in_crops_are_answered_as_by_transformers(workshop, monkeypatch, split):
    model = workshop.model("gemma3", "images.max-tiles=3", f"split={split}")
    oracle, pictures = workshop.oracle("gemma3"), LONG.pictures()
    crops = {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": 3}
    monkeypatch.setattr(
        oracle.processor, "images_kwargs", {**oracle.processor.images_kwargs, **crops}
    )
    expected = oracle.answer(LONG.messages, pictures)
    prompt = model.prompt(LONG.messages, images=pictures)
    assert [image.tiles for image in prompt.images] == [(1, 2), (0, 0), (1, 3)]
    assert prompt.token_ids.tolist() == expected.prompt_token_ids
    features = np.concatenate([model.image_features(image) for image in prompt.images])
    assert error(features, np.concatenate(expected.features)) < TOLERANCE
    assert error(model.logits(prompt, expected.forced[:-1]), expected.logits) < TOLERANCE
    answer = model.generate(LONG.messages, images=pictures, max_new_tokens=24)
    assert list(answer.token_ids) == expected.token_ids
