import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.grid_processors import whole_patches_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (336, 336), (400, 300), (300, 401), (28, 28), (29, 27), (1, 1), (1, 90), (97, 1), (3, 2),
    (17, 640), (641, 70), (1100, 760), (14, 14), (128, 129),
]  # fmt: skip
OPTIONS = {
    "default": ({}, 16, 1),
    "merged": ({"size": {"longest_edge": 280}}, 14, 2),
    "by-sides": ({"size": {"height": 90, "width": 300}, "resample": 2}, 8, 3),
    "number": ({"size": 100}, 8, 1),
    "levels": ({"size": {"longest_edge": 200}, "do_normalize": False}, 16, 1),
    "raw": ({"size": {"longest_edge": 64}, "do_rescale": False, "do_pad": False}, 4, 2),
}


def spec_of(settings, patch, merge):
    named = {"image_processor_type": "PixtralImageProcessor", **settings}
    return whole_patches_spec(named, patch, merge)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    from transformers import PixtralImageProcessorPil

    settings, patch, merge = OPTIONS[case]
    spec, picture = spec_of(settings, patch, merge), draw(*shape)
    # As PixtralProcessor hands it on: the side of a merged patch.
    processor = PixtralImageProcessorPil(**settings)
    theirs = processor(picture, patch_size=patch * merge, return_tensors="np")
    pixels, (height, width) = theirs["pixel_values"][0], theirs["image_sizes"][0]
    ours = prepare(picture, spec)
    patches, places = ours.tensors["pixel_values"], ours.tensors["patch_positions"]
    assert patches.dtype == np.float32
    put = np.zeros((3, height, width), np.float32)
    for values, (row, column) in zip(patches.reshape(-1, 3, patch, patch), places, strict=True):
        put[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = values
    assert np.array_equal(put, pixels)
    rows, columns = height // patch // merge, width // patch // merge
    assert (ours.grid, ours.tiles) == ((1, rows, columns), (rows - 1, 1))
    assert ours.tokens == rows * columns == image_tokens(shape[1], shape[0], spec)
    # A merged patch's patches are neighbours, row by row.
    blocks = places.reshape(-1, merge, merge, 2) // merge
    assert (blocks == blocks[:, :1, :1]).all()
    assert (blocks[:, 0, 0] == np.argwhere(np.ones((rows, columns)))).all()
    for promised in vision_inputs(spec):
        tensor = ours.tensors[promised.name]
        assert (tensor.dtype, tensor.shape[1:]) == (promised.dtype, promised.shape[1:])


def test_a_picture_that_loses_a_side_is_refused(draw):
    spec = spec_of({"size": {"longest_edge": 20}}, 4, 1)
    with pytest.raises(VlmcError, match=r"1 x 41 pixels"):
        prepare(draw(1, 41), spec)
    assert image_tokens(40, 2, spec) == 5


def test_pictures_as_they_are_must_be_whole_patches(draw):
    spec = spec_of({"do_resize": False}, 4, 2)
    assert prepare(draw(16, 24), spec).tokens == 6
    with pytest.raises(VlmcError, match="multiples of 8 pixels"):
        prepare(draw(16, 20), spec)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_center_crop": True}, "not cropped"),
        ({"size": {"shortest_edge": 5}}, "cannot be bounded by that"),
        ({"image_processor_type": "CLIPImageProcessor"}, "unknown image processor"),
    ],
)
def test_settings_that_are_refused(settings, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(settings, 16, 1)
