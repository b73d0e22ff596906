"""Positions on a canvas, against transformers' MiniCPM-V 4.7."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.runtime.canvas import _steps
from vlmc.runtime.positions import position_axes, prompt_positions
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt

IMAGE_ID = 7
MARKS = {"image_start": 1, "image_end": 2, "slice_start": 3, "slice_end": 4, "newline": 5}
CANVAS = PositionSpec(scheme="canvas", options=MARKS)
Picture = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def make(*pieces: int | Picture) -> Prompt:
    """A prompt of texts (their lengths) and pictures: whole, grid of slices, and each of these."""
    ids: list[int] = []
    index: list[int] = []
    spans, images = [], []
    rows = 0

    def add(tokens: list[int], *, shown: bool = False) -> None:
        nonlocal rows
        ids.extend(tokens)
        index.extend(range(rows, rows + len(tokens)) if shown else [-1] * len(tokens))
        rows += len(tokens) if shown else 0

    for piece in pieces:
        if isinstance(piece, int):
            add([9] * piece)
            continue
        whole, (down, across), each = piece
        shapes = (whole, *((each,) * (down * across)))
        runs = tuple(height * width for height, width in shapes)
        start = len(ids) + 1
        add([1])
        add([IMAGE_ID] * runs[0], shown=True)
        add([2])
        for number, run in enumerate(runs[1:]):
            add([5] if number and number % across == 0 else [])
            add([3])
            add([IMAGE_ID] * run, shown=True)
            add([4])
        spans.append(ImageSpan(start, len(ids) - start, len(images)))
        grid = (1, 1, sum(runs))
        images.append(PreparedImage({}, sum(runs), grid, (down, across), runs, shapes))
    return Prompt(np.array(ids), np.array(index), tuple(spans), tuple(images))


def expected(prompt: Prompt, marks: dict[str, int | None]) -> tuple[np.ndarray, int]:
    """transformers' ``get_rope_index``, on an object with only its configuration."""
    import torch
    from transformers import MiniCPMV4_7Model as Known

    named = {f"{mark}_id": id for mark, id in marks.items()}
    model = SimpleNamespace(config=SimpleNamespace(downsample_mode="16x", **named))
    model._frame_end_idx = Known._frame_end_idx
    for name in ("_group_visual_frames", "get_vision_position_ids"):
        setattr(model, name, getattr(Known, name).__get__(model))
    ids = torch.from_numpy(prompt.token_ids)[None]
    shapes = [shape for image in prompt.images for shape in image.shapes]
    sizes = 4 * torch.tensor(shapes) if shapes else None
    found, delta = Known.get_rope_index(model, ids, (ids == IMAGE_ID).int(), sizes)
    return found[:, 0].numpy(), int(delta) + len(prompt.token_ids)


SHAPE = st.tuples(st.integers(1, 5), st.integers(1, 5))
PICTURE = st.tuples(SHAPE, st.tuples(st.integers(0, 3), st.integers(0, 3)), SHAPE)


@settings(max_examples=150, deadline=None)
@given(
    start=st.integers(0, 5),
    rest=st.lists(st.tuples(PICTURE, st.integers(0, 4)), max_size=4),
    unknown=st.sets(st.sampled_from(list(MARKS))),
)
def test_positions_are_transformers(start, rest, unknown):
    prompt = make(start, *(piece for pair in rest for piece in pair))
    if not len(prompt.token_ids):
        return
    marks = {mark: None if mark in unknown else id for mark, id in MARKS.items()}
    spec = PositionSpec(scheme="canvas", options=marks)
    positions, following = prompt_positions(prompt, spec)
    wanted, wanted_following = expected(prompt, marks)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(positions, wanted)
    assert following == wanted_following


def test_a_whole_is_spread_as_torch_spreads_it():
    import torch

    for size in range(1, 90, 3):
        for count in range(1, min(size, 40) + 1):
            wanted = torch.linspace(0, size - 1, count).round().long().numpy()
            np.testing.assert_array_equal(_steps(count, size), wanted)


def test_parts_that_the_pictures_do_not_have():
    prompt = make(2, ((2, 3), (1, 2), (2, 2)), 1)
    image = PreparedImage({}, 14, (1, 1, 14), (1, 2), (6, 4, 4), ((2, 3), (2, 2), (3, 2)))
    other = Prompt(prompt.token_ids, prompt.feature_index, prompt.spans, (image,))
    with pytest.raises(VlmcError, match="the parts of its images"):
        prompt_positions(other, CANVAS)
    assert position_axes(CANVAS) == 3
    assert prompt_positions(make(), CANVAS)[1] == 0
