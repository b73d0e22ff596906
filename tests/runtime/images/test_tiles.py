import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.tiles_processors import tiles_spec, torch_tiles_spec
from vlmc.runtime.images import image_tokens, open_image, prepare, vision_inputs

SHAPES = [
    (384, 384), (400, 300), (300, 401), (96, 96), (97, 95), (1, 1), (1, 200), (900, 1), (3, 2),
    (640, 17), (7, 641), (1023, 767), (191, 96), (288, 96), (200, 300), (272, 136), (480, 640),
]  # fmt: skip
SMALL = {"size": {"height": 96, "width": 96}}
OPTIONS = {
    "default": {},
    "small": SMALL,
    "one": {**SMALL, "max_patches": 1},
    "two": {**SMALL, "max_patches": 2, "resample": 2},
    "some": {**SMALL, "min_patches": 3, "max_patches": 7},
    "always-five": {**SMALL, "min_patches": 5, "max_patches": 5},
    "tall": {"size": {"height": 96, "width": 64}, "do_resize": False},
    "levels": {**SMALL, "do_rescale": False, "image_mean": [0.485, 0.456, 0.406]},
    "raw": {**SMALL, "do_rescale": False, "do_normalize": False, "do_convert_rgb": False},
}


def oracle(options):
    from transformers import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(crop_to_patches=True, **options)


def spec_of(options, **bounds):
    return tiles_spec({"image_processor_type": "GotOcr2ImageProcessor", **options}, 9, **bounds)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw):
    options = OPTIONS[case]
    spec, picture = spec_of(options), draw(*shape)
    theirs = oracle(options)(picture, return_tensors="np")
    ours = prepare(picture, spec)
    pixel_values = ours.tensors["pixel_values"]
    assert pixel_values.dtype == np.float32
    assert np.array_equal(pixel_values, theirs["pixel_values"].astype(np.float32))
    assert ours.tokens == 9 * len(pixel_values) == 9 * theirs["num_patches"][0]
    assert ours.tokens == image_tokens(shape[1], shape[0], spec)
    [promised] = vision_inputs(spec)
    assert (promised.name, promised.dtype) == ("pixel_values", "float32")
    assert promised.shape == ("tiles", *pixel_values.shape[1:])


@pytest.mark.parametrize("case", OPTIONS)
def test_token_counts_equal_transformers_on_every_size(case):
    spec, processor = spec_of(OPTIONS[case]), oracle(OPTIONS[case])
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 2000, (600, 2)).tolist()
    # Shapes as near to one grid as to another, where the picture's area decides.
    sizes += [[side, side * times] for side in range(20, 700, 17) for times in (1, 2, 3)]
    for height, width in sizes:
        tiles = processor.get_number_of_image_patches(height, width)
        assert image_tokens(height, width, spec) == 9 * tiles, (height, width)


TORCH_OPTIONS = {
    "default": {},
    "small": SMALL,
    "one": {**SMALL, "max_patches": 1},
    "some": {**SMALL, "max_patches": 7, "image_mean": [0.5, 0.4, 0.3]},
    "uncut": {**SMALL, "crop_to_patches": False},
}


@pytest.mark.parametrize("case", TORCH_OPTIONS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_tiles_equal_what_torchvision_would_make_bit_for_bit(case, shape, draw):
    from tests.build.torch_images import Cohere2VisionImages

    options = TORCH_OPTIONS[case]
    settings = {"image_processor_type": "Cohere2VisionImageProcessorFast", **options}
    spec = torch_tiles_spec(settings, 256)
    picture = draw(*shape, "RGBA" if shape[0] % 2 else "RGB")
    theirs = Cohere2VisionImages(options)([picture])
    ours = prepare(picture, spec)
    assert np.array_equal(ours.tensors["pixel_values"], theirs["pixel_values"].numpy())
    assert ours.tokens == 256 * theirs["num_patches"][0] == image_tokens(*shape[::-1], spec)
    rows, columns = ours.tiles
    assert theirs["num_patches"] == [rows * columns + 1]


def test_tiles_for_torchvision_that_are_refused():
    settings = {"image_processor_type": "Cohere2VisionImageProcessor", "resample": 1}
    with pytest.raises(VlmcError, match="resample is one of bilinear, bicubic"):
        torch_tiles_spec(settings, 256)
    with pytest.raises(VlmcError, match=r"16\*\*2 tokens for a tile, the model makes 49"):
        torch_tiles_spec(settings, 49)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK", "I;16", "F"])
def test_pictures_that_were_not_opened_here(mode, draw):
    picture = draw(145, 60, mode)
    theirs = oracle(SMALL)(picture, return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(picture, spec_of(SMALL)).tensors["pixel_values"], theirs)


def test_a_file_with_a_transparent_color(draw, save):
    path = save(draw(145, 60, "P"), "transparent.png", transparency=3)
    theirs = oracle(SMALL)(str(path), return_tensors="np")["pixel_values"]
    ours = prepare(open_image(path, at="x"), spec_of(SMALL)).tensors["pixel_values"]
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("most", [1, 2, 5, 20])
def test_the_recipes_bound_replaces_the_processors(most, draw):
    spec = spec_of(SMALL, max_tiles=most)
    theirs = oracle({**SMALL, "max_patches": most})(draw(700, 300), return_tensors="np")
    ours = prepare(draw(700, 300), spec).tensors["pixel_values"]
    assert np.array_equal(ours, theirs["pixel_values"])
    assert spec.options["max_tiles"] == most


def test_a_canvas_beyond_all_bounds_is_refused(draw):
    spec = spec_of({"size": {"height": 9000, "width": 9000}})
    with pytest.raises(VlmcError, match=r"20 x 2 pixels.*90000 x 9000 pixels") as caught:
        prepare(draw(20, 2), spec)
    with pytest.raises(VlmcError) as again:
        image_tokens(2, 20, spec)
    assert str(again.value) == str(caught.value)
