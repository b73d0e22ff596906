"""Idefics2's pictures against transformers: the same pixels, in patches that no mask hides."""

import numpy as np
import pytest

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.quarters_processor import quarters_spec
from vlmc.runtime.images import check_spec, image_tokens, prepare, vision_inputs

SHAPES = [(60, 60), (61, 41), (40, 97), (2, 3), (200, 20), (17, 230), (31, 30), (120, 119)]
PATCH = 7
SMALL = {"size": {"shortest_edge": 25, "longest_edge": 64}}
OPTIONS = {
    "whole": SMALL,
    "quarters": {**SMALL, "do_image_splitting": True},
    "exact": {"size": {"height": 30, "width": 50}, "do_image_splitting": True, "resample": 3},
    "levels": {**SMALL, "do_rescale": False, "image_mean": [0.1, 0.2, 0.3], "do_pad": None},
    "tall": {"size": {"shortest_edge": 40, "longest_edge": 30}, "do_convert_rgb": False},
}


def oracle(options):
    from transformers import Idefics2ImageProcessorPil

    return Idefics2ImageProcessorPil(**{**options, "do_pad": True})


def spec_of(options, tokens=3):
    settings = {"image_processor_type": "Idefics2ImageProcessor", **options}
    return quarters_spec(settings, tokens, patch_size=PATCH)


def cut(values, mask):
    """Patches of a part that are whole: [P, 3 * PATCH**2]; rows and columns of them."""
    rows, columns = int(mask[:, 0].sum()) // PATCH, int(mask[0].sum()) // PATCH
    kept = values[:, : rows * PATCH, : columns * PATCH]
    blocks = kept.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 3, 0, 2, 4)
    return blocks.reshape(rows * columns, -1), rows, columns


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    options = OPTIONS[case]
    spec, picture = spec_of(options), draw(*shape)
    # Beside another picture, as whose size it may be filled up.
    theirs = oracle(options)([[picture, draw(33, 90)]], return_tensors="np")
    ours = prepare(picture, spec)
    parts = len(ours.tensors["tile_patches"])
    assert parts == (5 if options.get("do_image_splitting") else 1)
    assert ours.tokens == 3 * parts == image_tokens(shape[1], shape[0], spec)
    masks = theirs["pixel_attention_mask"][0]
    found, places = ours.tensors["pixel_values"], ours.tensors["patch_places"]
    for slots, values, mask in zip(
        ours.tensors["tile_patches"], theirs["pixel_values"][0], masks, strict=False
    ):
        expected, rows, columns = cut(values, mask)
        kept = slots[slots >= 0]
        assert np.array_equal(found[kept], expected.astype(np.float32))
        assert np.array_equal(slots, np.pad(kept, (0, len(slots) - len(kept)), constant_values=-1))
        row, column = np.divmod(np.arange(len(kept)), columns)
        even = np.stack([row / rows, column / columns], axis=1)
        np.testing.assert_allclose(places[kept], even, atol=2e-6)
    assert (places < 1).all()
    assert [spec.name for spec in vision_inputs(spec)] == list(ours.tensors)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK"])
def test_pictures_that_were_not_opened_here(mode, draw):
    picture = draw(45, 60, mode)
    theirs = oracle(SMALL)([[picture]], return_tensors="np")
    expected, *_ = cut(theirs["pixel_values"][0][0], theirs["pixel_attention_mask"][0][0])
    assert np.array_equal(prepare(picture, spec_of(SMALL)).tensors["pixel_values"], expected)


def test_pictures_that_are_too_narrow(draw):
    with pytest.raises(VlmcError, match=r"1 x 90 pixels is too narrow to be quartered"):
        prepare(draw(1, 90), spec_of(OPTIONS["quarters"]))
    options = {"size": {"shortest_edge": 3, "longest_edge": 64}}
    with pytest.raises(VlmcError, match="becomes 64 x 4 pixels, less than a patch of 7") as caught:
        prepare(draw(320, 20), spec_of(options))
    with pytest.raises(VlmcError) as again:
        image_tokens(20, 320, spec_of(options))
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize("size", [30, {"shortest_edge": 30}, {"longest_edge": 30}])
def test_sizes_that_the_class_cannot_use(size):
    with pytest.raises(VlmcError, match=r"size: .*(cannot be resized by|is no size)"):
        spec_of({"size": size})


def test_no_part_is_resized_where_none_should_be(draw):
    options = {"do_resize": False, "do_image_splitting": True}
    theirs = oracle(options)([[draw(43, 29)]], return_tensors="np")
    ours = prepare(draw(43, 29), spec_of(options)).tensors
    for slots, values, mask in zip(
        ours["tile_patches"],
        theirs["pixel_values"][0],
        theirs["pixel_attention_mask"][0],
        strict=True,
    ):
        expected, *_ = cut(values, mask)
        assert np.array_equal(ours["pixel_values"][slots[slots >= 0]], expected)


def test_a_square_smaller_than_the_least_side():
    options = {**spec_of(SMALL).options, "resize": {"longest": 60, "least": 70}}
    with pytest.raises(VlmcError, match=r"images\.json"):
        check_spec(ImageSpec(geometry="quarters", options=options), at="images.json")
    fitting = {**options, "resize": {"longest": 60, "least": 60}}
    check_spec(ImageSpec(geometry="quarters", options=fitting), at="images.json")
