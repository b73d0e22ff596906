import numpy as np
import pytest

from tests.build.torch_images import Llama4Images
from vlmc.errors import VlmcError
from vlmc.families.canvas_processor import canvas_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs
from vlmc.runtime.images.canvas import bfloat16

SHAPES = [
    (30, 90), (90, 30), (28, 28), (5, 4), (200, 20), (64, 64), (97, 31), (1, 1), (1, 300), (57, 83),
    (400, 391), (113, 55), (56, 28), (29, 29), (85, 84),
]  # fmt: skip
SIZE = {"size": {"height": 28, "width": 28}}
OPTIONS = {
    "sixteen": SIZE,
    "four": {**SIZE, "max_patches": 4},
    "one": {**SIZE, "max_patches": 1},
    "enlarged": {**SIZE, "max_patches": 6, "resize_to_max_canvas": True},
    "colors": {**SIZE, "image_mean": [0.1, 0.48, 0.9], "image_std": [0.26, 0.3, 0.71]},
    "bicubic": {**SIZE, "max_patches": 5, "resample": 3},
}


def spec_of(options, **bounds):
    given = {"image_processor_type": "Llama4ImageProcessorFast", **options}
    return canvas_spec(given, 4, image_size=28, **bounds)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw):
    spec, picture = spec_of(OPTIONS[case]), draw(*shape)
    theirs = Llama4Images(OPTIONS[case])(picture)
    ours = prepare(picture, spec)
    pixels = ours.tensors["pixel_values"]
    assert np.array_equal(pixels, theirs["pixel_values"].numpy())
    rows, columns = theirs["aspect_ratios"][0]
    assert ours.tiles == ((rows, columns) if rows * columns > 1 else (0, 0))
    assert ours.tokens == 4 * len(pixels) == image_tokens(shape[1], shape[0], spec)
    assert vision_inputs(spec)[0].shape == ("tiles", *pixels.shape[1:])


def test_rounding_is_that_of_bfloat16():
    import torch

    numbers = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * 300
    numbers = np.concatenate([numbers, np.arange(513, dtype=np.float32)])
    wanted = torch.from_numpy(numbers).to(torch.bfloat16).float().numpy()
    assert np.array_equal(bfloat16(numbers), wanted)


@pytest.mark.parametrize(
    ("options", "bounds", "expected"),
    [
        ({"size": {"height": 56, "width": 56}}, {}, "56 x 56 pixels"),
        ({**SIZE, "do_resize": False}, {}, "sizes of their own"),
        ({**SIZE, "do_rescale": False}, {}, "bytes cannot be normalized"),
        ({**SIZE, "resample": 1}, {}, "resample"),
        (SIZE, {"max_tiles": 0}, "images.max-tiles"),
    ],
)
def test_processors_that_are_refused(options, bounds, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(options, **bounds)
