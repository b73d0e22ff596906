import numpy as np
import pytest

from tests.build.torch_images import PerceptionLMImages
from vlmc.errors import VlmcError
from vlmc.families.whole_then_tiles_processor import whole_then_tiles_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (30, 90), (90, 30), (28, 28), (5, 4), (200, 20), (64, 64), (97, 31), (1, 1), (1, 300), (57, 83),
    (400, 391), (113, 55), (56, 28), (29, 29), (85, 84), (168, 28), (27, 170),
]  # fmt: skip
TILE = {"tile_size": 28}
OPTIONS = {
    "default": TILE,
    "six": {**TILE, "max_num_tiles": 6},
    "one": {**TILE, "max_num_tiles": 1},
    "whole": {**TILE, "vision_input_type": "vanilla"},
    "colors": {**TILE, "image_mean": [0.1, 0.48, 0.9], "image_std": [0.26, 0.3, 0.71]},
    "bilinear": {**TILE, "max_num_tiles": 5, "resample": 2, "rescale_factor": 0.01},
    "bytes": {**TILE, "max_num_tiles": 4, "do_normalize": False, "do_rescale": False},
}


def spec_of(options, side=28, **bounds):
    given = {"image_processor_type": "PerceptionLMImageProcessorFast", **options}
    return whole_then_tiles_spec(given, 4, image_size=(28, side), **bounds)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw):
    spec, picture = spec_of(OPTIONS[case]), draw(*shape)
    theirs = PerceptionLMImages(OPTIONS[case])(picture)["pixel_values"][0]
    ours = prepare(picture, spec)
    pixels = ours.tensors["pixel_values"]
    assert np.array_equal(pixels, theirs)
    assert ours.tokens == 4 * len(pixels) == image_tokens(shape[1], shape[0], spec)
    assert vision_inputs(spec)[0].shape == ("tiles", *pixels.shape[1:])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA"])
def test_pictures_of_other_modes(mode, draw):
    picture = draw(60, 45, mode)
    theirs = PerceptionLMImages(TILE)(picture)["pixel_values"][0]
    assert np.array_equal(prepare(picture, spec_of(TILE)).tensors["pixel_values"], theirs)


def test_grids_are_those_transformers_chooses():
    known = PerceptionLMImages(TILE).known
    for most in (1, 2, 7, 12, 36):
        spec = spec_of({**TILE, "max_num_tiles": most})
        theirs = object.__new__(known)
        theirs.max_num_tiles = most
        for height in range(1, 260, 31):
            for width in range(1, 260, 19):
                wanted = theirs._fit_image_to_canvas(width, height, 28)
                wanted = wanted or theirs._find_closest_aspect_ratio(width, height, 28)
                tiles = image_tokens(height, width, spec) // 4
                assert tiles == wanted[0] * wanted[1] + 1, (height, width, most)


@pytest.mark.parametrize(
    ("options", "bounds", "expected"),
    [
        ({"tile_size": 56}, {}, "56 x 56 pixels"),
        (TILE, {"side": 14}, "tiles are squares, the vision tower takes 14 x 28"),
        ({**TILE, "do_resize": False}, {}, "sizes of their own"),
        ({**TILE, "resample": 1}, {}, "resample"),
        ({**TILE, "max_num_tiles": 300}, {}, "max_tiles"),
        (TILE, {"max_tiles": 0}, "images.max-tiles"),
    ],
)
def test_processors_that_are_refused(options, bounds, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(options, **bounds)
