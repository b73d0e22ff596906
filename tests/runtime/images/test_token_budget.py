import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.token_budget_processor import token_budget_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (640, 480), (400, 300), (301, 400), (28, 28), (29, 27), (1, 1), (1, 90), (97, 1), (3, 2),
    (17, 640), (641, 7), (1100, 760), (12, 12), (96, 96), (1400, 9),
]  # fmt: skip
OPTIONS = {
    "small": ({"max_soft_tokens": 70}, 4, 3),
    "default": ({}, 16, 3),
    "merged": ({"max_soft_tokens": 140, "resample": 2, "do_convert_rgb": False}, 6, 2),
    "single": ({"max_soft_tokens": 70, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6]}, 5, 1),
    "raw": ({"max_soft_tokens": 70, "do_rescale": False}, 4, 2),
}


def spec_of(settings, patch, merge, side=10240):
    named = {"image_processor_type": "Gemma4ImageProcessor", **settings}
    named |= {"patch_size": patch, "pooling_kernel_size": merge}
    return token_budget_spec(named, patch, merge, side)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    from transformers import Gemma4ImageProcessorPil

    settings, patch, merge = OPTIONS[case]
    spec, picture = spec_of(settings, patch, merge), draw(*shape)
    processor = Gemma4ImageProcessorPil(**settings, patch_size=patch, pooling_kernel_size=merge)
    theirs = processor(picture, return_tensors="np")
    ours = prepare(picture, spec)
    patches, places = ours.tensors["pixel_values"], ours.tensors["patch_positions"]
    assert patches.dtype == np.float32
    known = {
        (y, x): values
        for values, (x, y) in zip(
            theirs["pixel_values"][0], theirs["image_position_ids"][0], strict=True
        )
        if x >= 0
    }
    assert len(known) == len(patches)
    for values, place in zip(patches, places, strict=True):
        assert np.array_equal(values, known[tuple(place)])
    counted = int(np.ravel(theirs["num_soft_tokens_per_image"])[0])
    assert ours.tokens == counted == image_tokens(shape[1], shape[0], spec)
    # The patches that are pooled are neighbours, row by row.
    blocks = places.reshape(-1, merge * merge, 2) // merge
    assert (blocks == blocks[:, :1]).all()
    assert (blocks[:, 0] == np.argwhere(np.ones(ours.grid[1:]))).all()
    for promised in vision_inputs(spec):
        tensor = ours.tensors[promised.name]
        assert (tensor.dtype, tensor.shape[1:]) == (promised.dtype, promised.shape[1:])


UNIFIED = {
    "small": ({"max_soft_tokens": 70}, 4, 3),
    "bilinear": ({"max_soft_tokens": 140, "resample": 2}, 6, 2),
    "normal": ({"max_soft_tokens": 70, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6]}, 5, 1),
    "raw": ({"max_soft_tokens": 70, "do_rescale": False}, 4, 2),
}


@pytest.mark.parametrize("case", UNIFIED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_merged_patches_equal_the_unified_processor_bit_for_bit(case, shape, draw):
    from tests.build.budget_images import Gemma4UnifiedImages

    settings, patch, merge = UNIFIED[case]
    given = {"patch_size": patch, "pooling_kernel_size": merge, **settings}
    named = {"image_processor_type": "Gemma4UnifiedImageProcessor", **given}
    spec, picture = token_budget_spec(named, patch, merge, 10240), draw(*shape)
    theirs = Gemma4UnifiedImages(given)([picture])
    ours = prepare(picture, spec)
    (counted,) = theirs["num_soft_tokens_per_image"].tolist()
    assert ours.tokens == counted == image_tokens(shape[1], shape[0], spec)
    values = theirs["pixel_values"][0, :counted].numpy()
    assert np.array_equal(ours.tensors["pixel_values"], values)
    places = theirs["image_position_ids"][0, :counted].numpy()
    assert np.array_equal(ours.tensors["patch_positions"][:, ::-1], places)


def test_a_filter_that_torch_lacks_is_refused():
    named = {"image_processor_type": "Gemma4UnifiedImageProcessor", "resample": 1}
    with pytest.raises(VlmcError, match="bilinear, bicubic"):
        token_budget_spec(named, 16, 3, 1120)


def test_a_side_with_more_patches_than_positions_is_refused(draw):
    spec = spec_of({"max_soft_tokens": 70}, 4, 3, side=60)
    assert prepare(draw(200, 40), spec).tokens == image_tokens(40, 200, spec)
    with pytest.raises(VlmcError, match=r"210 patches along a side; the limit is 60"):
        prepare(draw(1400, 9), spec)


def test_pictures_that_are_not_resized_fit_or_are_refused(draw):
    spec = spec_of({"max_soft_tokens": 70, "do_resize": False}, 4, 3)
    assert prepare(draw(36, 24), spec).grid == (1, 2, 3)
    with pytest.raises(VlmcError, match="multiples of 12 pixels"):
        prepare(draw(36, 25), spec)
