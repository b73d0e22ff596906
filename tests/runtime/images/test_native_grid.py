import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.grid_processors import native_grid_spec
from vlmc.runtime.images import image_tokens, open_image, prepare, vision_inputs
from vlmc.runtime.images.patches import positions, windows
from vlmc.runtime.images.position_table import PositionTable, spread, table_rows

SHAPES = [
    (336, 336), (400, 300), (300, 401), (28, 28), (29, 27), (1, 1), (1, 200), (200, 1), (3, 2),
    (17, 640), (641, 7), (1023, 767), (14, 14), (42, 70), (1500, 1100),
]  # fmt: skip
OPTIONS = {
    "default": {},
    "small": {"min_pixels": 784, "max_pixels": 50_000},
    "one-token": {"min_pixels": 1, "max_pixels": 784},
    "patch-16": {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 200_000}},
    "merge-3": {"merge_size": 3, "patch_size": 8, "temporal_patch_size": 1, "max_pixels": 60_000},
    "merge-1": {"merge_size": 1, "temporal_patch_size": 3, "max_pixels": 60_000, "resample": 2},
    "levels": {"do_rescale": False, "max_pixels": 60_000},
    "raw": {"do_rescale": False, "do_normalize": False, "max_pixels": 60_000},
    "rescaled": {"do_normalize": False, "max_pixels": 60_000, "do_convert_rgb": False},
}


def oracle(options):
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**options)


def spec_of(options):
    return native_grid_spec({"image_processor_type": "Qwen2VLImageProcessor", **options})


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    import torch
    from transformers.vision_utils import get_vision_position_ids

    options = OPTIONS[case]
    spec = spec_of(options)
    merge = options.get("merge_size", 2)
    picture = draw(*shape)
    theirs = oracle(options)(picture, return_tensors="np")
    ours = prepare(picture, spec)
    pixel_values, places = ours.tensors["pixel_values"], ours.tensors["patch_positions"]
    assert pixel_values.dtype == np.float32
    assert np.array_equal(pixel_values, theirs["pixel_values"])
    grid = theirs["image_grid_thw"]
    assert places.dtype == np.int64
    assert np.array_equal(places, get_vision_position_ids(torch.tensor(grid), merge).numpy())
    assert ours.grid == (1, grid[0, 1] // merge, grid[0, 2] // merge)
    assert ours.tokens == len(pixel_values) // merge**2
    assert ours.tokens == image_tokens(shape[1], shape[0], spec)
    first, second = vision_inputs(spec)
    assert (first.name, first.dtype, first.shape) == (
        "pixel_values",
        "float32",
        ("patches", pixel_values.shape[1]),
    )
    assert (second.name, second.dtype, second.shape) == ("patch_positions", "int64", ("patches", 2))


@pytest.mark.parametrize("side", [2, 4, 6])
def test_windows_are_those_of_transformers(side):
    import torch
    from transformers.vision_utils import get_vision_window_index

    for rows in range(2, 16, 2):
        for columns in range(2, 16, 2):
            grid = torch.tensor([[1, rows, columns]])
            order, ends = get_vision_window_index(grid, 2, side * 14, 14)
            order = (4 * order[:, None] + torch.arange(4)).flatten().numpy()
            slots, slot_of = windows(positions(rows, columns, 2), side)
            assert slots.dtype == slot_of.dtype == np.int64
            assert slots.shape == (len(ends) - 1, side * side)
            assert np.array_equal(slots[slots >= 0], order)
            assert np.array_equal((slots >= 0).sum(axis=1), np.diff(ends))
            # The filled slots come first, so each window is one segment.
            assert np.array_equal(np.sort(slots < 0, axis=1), slots < 0)
            assert np.array_equal(slots.reshape(-1)[slot_of], np.arange(rows * columns))


def test_a_picture_for_a_tower_with_windows(draw):
    without = spec_of({})
    spec = native_grid_spec({"image_processor_type": "Qwen2VLImageProcessor"}, window=8)
    for shape in [(336, 336), (28, 300), (57, 60)]:
        prepared, plain = prepare(draw(*shape), spec), prepare(draw(*shape), without)
        free = {}
        for promised in vision_inputs(spec):
            tensor = prepared.tensors.pop(promised.name)
            assert tensor.dtype == promised.dtype
            for size, name in zip(tensor.shape, promised.shape, strict=True):
                assert size == (free.setdefault(name, size) if isinstance(name, str) else name)
            if promised.name in plain.tensors:
                assert np.array_equal(tensor, plain.tensors[promised.name])
        assert not prepared.tensors
    assert "window" not in without.options
    with pytest.raises(VlmcError, match="a window of 7 patches cuts merged patches of 2"):
        native_grid_spec({"image_processor_type": "Qwen2VLImageProcessor"}, window=7)


TABLES = {
    "corners": ({"taps": 2, "centers": "corners"}, {"mode": "bilinear", "align_corners": True}),
    "halves": ({"taps": 2, "centers": "halves"}, {"mode": "bilinear"}),
    "cubic": ({"taps": 4, "centers": "halves"}, {"mode": "bicubic"}),
}


@pytest.mark.parametrize("side", [1, 5, 48])
@pytest.mark.parametrize("case", TABLES)
def test_learned_positions_are_those_of_transformers(case, side):
    import torch
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    ours, theirs = TABLES[case]
    table = PositionTable(side=side, **ours)
    for rows, columns in [(2, 2), (2, 30), (64, 2), (6, 10), (50, 46)]:
        wanted = get_vision_interpolation_indices_and_weights(
            torch.tensor([[1, rows, columns]]), side, spatial_merge_size=2, **theirs
        )
        indices, weights = table_rows(positions(rows, columns, 2), rows, columns, table)
        assert (indices.dtype, weights.dtype) == (np.int64, np.float32)
        np.testing.assert_array_equal(indices, wanted[0].numpy())
        np.testing.assert_array_equal(weights, wanted[1].numpy())


def test_a_picture_for_a_tower_whose_table_is_spread(draw):
    named = {"image_processor_type": "Cosmos3EdgeImageProcessor"}
    spec = native_grid_spec(named, spread=5)
    prepared = prepare(draw(300, 401), spec)
    promised = vision_inputs(spec)
    assert [one.name for one in promised] == list(prepared.tensors)
    assert [one.shape for one in promised] == [("patches", 768), ("patches", 25)]
    _, rows, columns = prepared.grid
    places = positions(2 * rows, 2 * columns, 2)
    assert np.array_equal(
        prepared.tensors["table_weights"], spread(places, 2 * rows, 2 * columns, 5)
    )
    pixels = native_grid_spec(named)
    assert [one.name for one in vision_inputs(pixels)] == ["pixel_values", "patch_positions"]


@pytest.mark.parametrize("side", [1, 5, 24])
def test_sampled_positions_are_those_of_grid_sample(side):
    import torch
    from transformers import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionEmbeddings

    made = Glm4vVisionEmbeddings(Glm4vVisionConfig(hidden_size=8, image_size=14 * side))
    for rows, columns in [(2, 2), (2, 30), (64, 2), (6, 10), (50, 46)]:
        places = positions(rows, columns, 2)
        with torch.no_grad():
            wanted = made(
                torch.zeros(rows * columns, 8),
                torch.tensor([rows * columns]),
                torch.tensor([[1, rows, columns]]),
                *torch.from_numpy(places).T,
            ).numpy()
        table = PositionTable(side=side, taps=4, centers="sampled")
        indices, weights = table_rows(places, rows, columns, table)
        found = (made.position_embedding.weight.detach().numpy()[indices].T * weights.T).sum(1).T
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_token_counts_equal_transformers_on_every_size():
    spec, processor = spec_of({"max_pixels": 100_000}), oracle({"max_pixels": 100_000})
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (3000, 2)).tolist():
        if max(height, width) / min(height, width) > 200:
            continue
        patches = processor.get_number_of_image_patches(height, width)
        assert image_tokens(height, width, spec) == patches // 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "I;16", "F"])
def test_pictures_that_were_not_opened_here(mode, draw):
    picture = draw(45, 60, mode)
    theirs = oracle({})(picture, return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(picture, spec_of({})).tensors["pixel_values"], theirs)


def test_a_file_with_a_transparent_color(draw, save):
    path = save(draw(45, 60, "P"), "transparent.png", transparency=3)
    theirs = oracle({})(str(path), return_tensors="np")["pixel_values"]
    ours = prepare(open_image(path, at="x"), spec_of({})).tensors["pixel_values"]
    assert np.array_equal(ours, theirs)


def test_pictures_kept_at_their_size(draw):
    options = {"do_resize": False}
    spec = spec_of(options)
    theirs = oracle(options)(draw(84, 56), return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(draw(84, 56), spec).tensors["pixel_values"], theirs)
    with pytest.raises(VlmcError, match=r"85 x 56 pixels.*multiples of 28"):
        prepare(draw(85, 56), spec)


@pytest.mark.parametrize("shape", [(201, 1), (1, 201), (2, 402), (2009, 10)])
def test_a_narrow_picture_is_refused_with_the_limit(shape, draw):
    spec = spec_of({})
    if max(shape) / min(shape) <= 200:
        prepare(draw(*shape), spec)
        return
    with pytest.raises(VlmcError, match=rf"{shape[0]} x {shape[1]} pixels.*limit is 200") as caught:
        prepare(draw(*shape), spec)
    with pytest.raises(VlmcError) as again:
        image_tokens(shape[1], shape[0], spec)
    assert str(again.value) == str(caught.value)
    with pytest.raises(ValueError, match="aspect ratio"):
        oracle({})(draw(*shape))
