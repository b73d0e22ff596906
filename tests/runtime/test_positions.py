from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.runtime.positions import prompt_positions
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt

IMAGE_ID = 7
MROPE = PositionSpec(scheme="mrope")


def make(*pieces: int | tuple[int, int]) -> Prompt:
    """A prompt of texts (their lengths) and images (feature rows and columns)."""
    ids: list[int] = []
    index: list[int] = []
    spans, images = [], []
    for piece in pieces:
        if isinstance(piece, int):
            ids += [1] * piece
            index += [-1] * piece
            continue
        height, width = piece
        count = height * width
        spans.append(ImageSpan(len(ids), count, len(images)))
        images.append(PreparedImage({}, count, (1, height, width)))
        row = sum(image.tokens for image in images[:-1])
        ids += [IMAGE_ID] * count
        index += range(row, row + count)
    return Prompt(
        np.array(ids, dtype=np.int64), np.array(index, dtype=np.int64), tuple(spans), tuple(images)
    )


MODELS = (
    "Qwen2VLModel",
    "Qwen2_5_VLModel",
    "Qwen3VLModel",
    "Glm4vModel",
    "PaddleOCRVLModel",
    "Ernie4_5_VLMoeModel",
    "Cosmos3EdgeModel",
)


def expected(prompt: Prompt, model_class: str = MODELS[0]) -> tuple[np.ndarray, int]:
    """transformers' ``get_rope_index``, on an object with only its configuration."""
    import torch
    import transformers

    kind = getattr(transformers, model_class)
    tower = SimpleNamespace(spatial_merge_size=2, tokens_per_second=4, temporal_merge_size=2)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=tower))
    model.get_vision_position_ids = kind.get_vision_position_ids.__get__(model)
    ids = torch.from_numpy(prompt.token_ids)[None]
    grids = [[1, 2 * image.grid[1], 2 * image.grid[2]] for image in prompt.images]
    positions, delta = kind.get_rope_index(
        model,
        ids,
        (ids == IMAGE_ID).int(),
        torch.tensor(grids) if grids else None,
    )
    return positions[:, 0].numpy(), int(delta) + len(prompt.token_ids)


GRID = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, 5), rest=st.lists(st.tuples(GRID, st.integers(1, 9)), max_size=4))
def test_mrope_is_transformers(start, rest):
    # Images stand apart, as <|vision_start|> and <|vision_end|> see to.
    prompt = make(start, *(piece for pair in rest for piece in pair))
    if not len(prompt.token_ids):
        return
    positions, following = prompt_positions(prompt, MROPE)
    assert positions.dtype == np.int64
    for model_class in MODELS:
        wanted, wanted_following = expected(prompt, model_class)
        np.testing.assert_array_equal(positions, wanted)
        assert following == wanted_following


def test_a_second_turn_keeps_the_positions_of_the_first():
    first = make(4, (3, 5), 6)
    both = make(4, (3, 5), 6, 10, (2, 2), 3, (6, 1), 2)
    before, following = prompt_positions(first, MROPE)
    positions, _ = prompt_positions(both, MROPE)
    length = len(first.token_ids)
    np.testing.assert_array_equal(positions[:, :length], before)
    assert positions[:, length].tolist() == [following] * 3
    wanted, _ = expected(both)
    np.testing.assert_array_equal(positions, wanted)


def test_mrope_of_an_image_at_the_end():
    prompt = make(2, (2, 3))
    positions, following = prompt_positions(prompt, MROPE)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2],
        [0, 1, 2, 2, 2, 3, 3, 3],
        [0, 1, 2, 3, 4, 2, 3, 4],
    ]
    assert (following, expected(prompt)[1]) == (5, 5)


def test_mrope_of_neighbouring_images_counts_each_on_its_own():
    positions, following = prompt_positions(make((2, 2), (1, 3)), MROPE)
    assert positions[1].tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert positions[2].tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert following == 5


def test_text_alone_advances_all_axes():
    positions, following = prompt_positions(make(5), MROPE)
    assert positions.tolist() == [list(range(5))] * 3
    assert following == 5


def test_sequential():
    prompt = make(2, (2, 2), 3)
    positions, following = prompt_positions(prompt, PositionSpec(scheme="sequential"))
    assert positions.tolist() == list(range(9))
    assert positions.dtype == np.int64
    assert following == 9
    later = PositionSpec(scheme="sequential", options={"start": 1})
    positions, following = prompt_positions(prompt, later)
    assert positions.tolist() == list(range(1, 10))
    assert following == 10


def test_an_empty_prompt():
    assert prompt_positions(make(), MROPE)[1] == 0
    assert prompt_positions(make(), PositionSpec(scheme="sequential"))[1] == 0


def test_mistakes_are_named():
    with pytest.raises(VlmcError, match="did you mean 'mrope'"):
        prompt_positions(make(1), PositionSpec(scheme="m-rope"))
    with pytest.raises(VlmcError, match="no option 'sections'"):
        prompt_positions(make(1), PositionSpec(scheme="mrope", options={"sections": [1]}))
    with pytest.raises(VlmcError, match="'start': Input should be greater"):
        prompt_positions(make(1), PositionSpec(scheme="sequential", options={"start": -1}))
    wrong = make(1, (2, 2))
    wrong = Prompt(wrong.token_ids, wrong.feature_index, (ImageSpan(1, 3, 0),), wrong.images)
    with pytest.raises(VlmcError, match="1 x 2 x 2 feature rows has 3 placeholder"):
        prompt_positions(wrong, MROPE)
