import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.padded_grid_processor import padded_grid_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (640, 480), (301, 400), (28, 28), (29, 27), (1, 1), (1, 90), (97, 1), (17, 640), (641, 7),
    (56, 84), (111, 60),
]  # fmt: skip
OPTIONS = {
    "default": {},
    "budget": {"patch_size": 7, "max_patches": 24},
    "side": {"patch_size": 7, "size": {"max_height": 8, "max_width": 8}, "resample": 2},
    "thirds": {"patch_size": 5, "merge_size": 3, "image_mean": [0.4, 0.5, 0.6]},
    "raw": {"patch_size": 7, "do_rescale": False},
    "rescaled": {"patch_size": 7, "do_normalize": False},
}


def spec_of(settings, side=9):
    named = {"image_processor_type": "Kimi_K25ImageProcessor", **settings}
    patch, merge = settings.get("patch_size", 14), settings.get("merge_size", 2)
    return padded_grid_spec(named, patch, merge, side)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    from tests.build.padded_images import KimiImages

    settings = OPTIONS[case]
    spec, picture = spec_of(settings), draw(*shape)
    theirs = KimiImages(settings)([picture])
    ours = prepare(picture, spec)
    grid = theirs["image_grid_thw"]
    _, rows, columns = grid[0].tolist()
    merge = settings.get("merge_size", 2)
    assert ours.grid == (1, rows // merge, columns // merge)
    assert ours.tokens == rows * columns // merge**2 == image_tokens(shape[1], shape[0], spec)
    places = ours.tensors["patch_positions"]
    lines = places[:, 0] * columns + places[:, 1]
    values = np.asarray(theirs["pixel_values"]).reshape(rows * columns, -1)
    assert np.array_equal(ours.tensors["pixel_values"], values[lines])
    taken = get_vision_interpolation_indices_and_weights(grid, 9, mode="bicubic")
    for name, wanted in zip(("table_rows", "table_weights"), taken, strict=True):
        assert np.array_equal(ours.tensors[name], wanted.numpy()[lines])
    for promised in vision_inputs(spec):
        tensor = ours.tensors[promised.name]
        assert (tensor.dtype, tensor.shape[1:]) == (promised.dtype, promised.shape[1:])


def test_pictures_that_are_not_resized_must_fit(draw):
    spec = spec_of({"do_resize": False, "patch_size": 7})
    assert prepare(draw(28, 42), spec).tokens == 6
    with pytest.raises(VlmcError, match="multiples of 14 pixels"):
        prepare(draw(28, 41), spec)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"max_height": 8, "max_width": 9}}, "that are the same"),
        ({"size": {"shortest_edge": 8}}, "has no 'max_height'"),
        ({"resample": 1}, "bilinear, bicubic"),
    ],
)
def test_what_the_class_refuses_is_refused(settings, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(settings)
