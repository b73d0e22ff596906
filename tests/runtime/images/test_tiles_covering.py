"""Ovis 2's tiles against transformers, to the last bit."""

import numpy as np
import pytest

from vlmc.families.tiles_processors import ovis_tiles_spec
from vlmc.runtime.images import image_tokens, prepare

SHAPES = [
    (384, 384), (400, 300), (300, 401), (96, 96), (97, 95), (1, 1), (1, 200), (900, 1), (3, 2),
    (640, 17), (7, 641), (1023, 767), (191, 96), (288, 96), (200, 300), (480, 640),
]  # fmt: skip
SMALL = {"size": {"height": 96, "width": 96}}
OPTIONS = {
    "uncut": {},
    "default": {"crop_to_patches": True},
    "small": {**SMALL, "crop_to_patches": True},
    "one": {**SMALL, "crop_to_patches": True, "max_patches": 1, "min_patches": 4},
    "few": {**SMALL, "crop_to_patches": True, "max_patches": 3, "min_patches": 5, "resample": 2},
    "shape": {**SMALL, "crop_to_patches": True, "use_covering_area_grid": False, "min_patches": 3},
    "levels": {**SMALL, "crop_to_patches": True, "do_rescale": False, "do_resize": False},
    "centered": {**SMALL, "crop_to_patches": True, "do_center_crop": True, "crop_size": 96},
}


def oracle(options):
    from transformers import Ovis2ImageProcessorPil

    return Ovis2ImageProcessorPil(**options)


def spec_of(options):
    settings = {"image_processor_type": "Ovis2ImageProcessor", **options}
    return ovis_tiles_spec(settings, 9, marks=5)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw):
    spec, picture = spec_of(OPTIONS[case]), draw(*shape)
    theirs = oracle(OPTIONS[case])(picture, return_tensors="np")
    ours = prepare(picture, spec)
    pixel_values = ours.tensors["pixel_values"]
    assert np.array_equal(pixel_values, theirs["pixel_values"].astype(np.float32))
    assert ours.tokens == 9 * len(pixel_values) == image_tokens(shape[1], shape[0], spec)
    assert (ours.tokens + 5, 5) == (ours.rows, ours.marks)
    grid = theirs["grids"][0].tolist()
    assert list(ours.tiles) == (grid if grid != [1, 1] else [0, 0])


@pytest.mark.parametrize("most", [2, 5, 12])
def test_grids_equal_transformers_on_every_size(most):
    from transformers.models.ovis2.image_processing_pil_ovis2 import get_min_tile_covering_grid

    spec = spec_of({**SMALL, "crop_to_patches": True, "max_patches": most})
    sizes = np.random.default_rng(most).integers(1, 1500, (300, 2)).tolist()
    sizes += [[side, side * times] for side in range(20, 700, 37) for times in (1, 2, 3)]
    for height, width in [*sizes, *([w, h] for h, w in sizes[300:])]:
        columns, rows = get_min_tile_covering_grid((height, width), 96, most)
        tiles = rows * columns + (rows * columns > 1)
        assert image_tokens(height, width, spec) == 9 * tiles, (height, width)
