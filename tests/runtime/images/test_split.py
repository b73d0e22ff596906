import random

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.split_processors import SPLIT_CLASSES, split_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (364, 364), (400, 300), (300, 401), (1, 1), (1, 300), (300, 1), (2, 3), (17, 640), (641, 7),
    (1023, 767), (1456, 365), (99, 100),
]  # fmt: skip
SMALL = {"size": {"longest_edge": 90}, "max_image_size": {"longest_edge": 30}}
OPTIONS = {
    "default": {},
    "smolvlm-256m": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "small": SMALL,
    "odd": {"size": {"longest_edge": 101}, "max_image_size": {"longest_edge": 33}, "resample": 2},
    "whole": {**SMALL, "do_image_splitting": False},
    "as it is": {**SMALL, "do_resize": False},
    "whole as it is": {**SMALL, "do_resize": False, "do_image_splitting": False},
    "exact": {**SMALL, "size": {"height": 61, "width": 30}},
    "one tile": {**SMALL, "size": {"longest_edge": 30}},
    "unpadded": {**SMALL, "do_pad": False},
    "levels": {**SMALL, "do_rescale": False, "image_mean": [1.0, 2.0, 3.0]},
    "raw": {**SMALL, "do_rescale": False, "do_normalize": False},
}


def oracle(options, name="Idefics3ImageProcessor"):
    import transformers

    return getattr(transformers, f"{name}Pil")(**options, return_row_col_info=True)


def spec_of(options, name="Idefics3ImageProcessor"):
    side = options.get("max_image_size", {"longest_edge": 364})["longest_edge"]
    return split_spec({"image_processor_type": name, **options}, 5, image_size=side)


def assert_equals(picture, options, name="Idefics3ImageProcessor"):
    spec = spec_of(options, name)
    theirs = oracle(options, name)(picture, return_tensors="np")
    ours = prepare(picture, spec)
    pixel_values = ours.tensors["pixel_values"]
    assert pixel_values.dtype == np.float32
    assert np.array_equal(pixel_values, theirs["pixel_values"][0])
    assert np.all(theirs.get("pixel_attention_mask", 1) == 1)
    assert ours.tiles == (theirs["rows"][0][0], theirs["cols"][0][0])
    assert ours.tokens == 5 * len(pixel_values)
    assert ours.tokens == image_tokens(picture.height, picture.width, spec)
    [promised] = vision_inputs(spec)
    assert promised.shape == ("tiles", *pixel_values.shape[1:])


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw):
    assert_equals(draw(*shape), OPTIONS[case])


@pytest.mark.parametrize("name", SPLIT_CLASSES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "1", "P", "CMYK"])
def test_any_mode_of_picture(name, mode, draw):
    assert_equals(draw(45, 60, mode), SMALL, name)


def test_random_settings_on_random_sizes(draw):
    rng = random.Random(0)
    for _ in range(150):
        options = {
            "size": {"longest_edge": rng.randint(1, 200)},
            "max_image_size": {"longest_edge": rng.randint(1, 60)},
            "do_image_splitting": rng.random() < 0.8,
            "resample": rng.randrange(6),
        }
        assert_equals(draw(rng.randint(1, 120), rng.randint(1, 120), "RGB"), options)


def test_several_pictures_of_one_prompt_need_no_padding(draw):
    pictures = [draw(100, 30), draw(20, 90), draw(50, 50)]
    theirs = oracle(SMALL)([pictures], return_tensors="np")
    ours = [prepare(picture, spec_of(SMALL)).tensors["pixel_values"] for picture in pictures]
    assert np.array_equal(np.concatenate(ours), theirs["pixel_values"][0])
    assert np.all(theirs["pixel_attention_mask"] == 1)


def test_no_edge_is_longer_than_4096(draw):
    options = {"size": {"longest_edge": 5000}, "max_image_size": {"longest_edge": 1024}}
    assert_equals(draw(40, 7), options)
    assert_equals(draw(7, 40), options)


def test_a_picture_that_grows_without_end_is_refused(draw):
    spec = spec_of({**SMALL, "size": {"height": 100_000, "width": 1000}})
    for call in (lambda: prepare(draw(5, 4), spec), lambda: image_tokens(4, 5, spec)):
        with pytest.raises(VlmcError, match="the limit is"):
            call()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_image_size": {"longest_edge": 31}}, "tiles by {.longest_edge.: 31}"),
        ({"max_image_size": {"height": 30, "width": 30}}, "tiles by {.height.: 30"),
        ({"size": {"shortest_edge": 30}}, "cannot be resized by"),
        ({"size": {"shortest_edge": 30, "longest_edge": 60}}, "cannot be resized by"),
        ({"do_image_splitting": 1}, "neither true nor false"),
        ({"image_processor_type": "Idefics2ImageProcessor"}, "unknown image processor"),
    ],
)
def test_settings_that_are_refused(changes, expected):
    settings = {"image_processor_type": "Idefics3ImageProcessor", **SMALL, **changes}
    with pytest.raises(VlmcError, match=expected):
        split_spec(settings, 5, image_size=30)
