import numpy as np
import pytest

from tests.build.phi_images import Phi4Images
from vlmc.errors import VlmcError
from vlmc.families.hd_crops_processor import hd_crops_spec
from vlmc.runtime.images import image_tokens, prepare, together, vision_inputs
from vlmc.runtime.images.hd_crops import buckets

SHAPES = [
    (30, 90), (90, 30), (28, 28), (15, 14), (200, 40), (64, 64), (97, 31), (12, 13), (57, 83),
    (400, 391), (113, 55), (56, 28), (29, 29), (85, 84), (36, 330), (84, 112),
]  # fmt: skip
SIZE = {"size": {"height": 28, "width": 28}, "patch_size": 7}
OPTIONS = {
    "thirty-six": SIZE,
    "four": {**SIZE, "dynamic_hd": 4},
    "one": {**SIZE, "dynamic_hd": 1},
    "odd": {**SIZE, "patch_size": 5, "dynamic_hd": 9},
    "colors": {**SIZE, "image_mean": [0.1, 0.48, 0.9], "image_std": [0.26, 0.3, 0.71]},
    "bilinear": {**SIZE, "resample": 2},
    "not rescaled": {**SIZE, "do_rescale": False},
}

# Resized, fewer than ten pixels of a side would be left.
NARROW = {"one": [(30, 90), (90, 30), (200, 40), (97, 31), (36, 330)]}


def spec_of(options, **bounds):
    given = {"image_processor_type": "Phi4MultimodalImageProcessorFast", **options}
    return hd_crops_spec(given, image_size=28, patch_size=options["patch_size"], **bounds)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crops_equal_transformers_bit_for_bit(case, shape, draw):
    spec, picture = spec_of(OPTIONS[case]), draw(*shape)
    if shape in NARROW.get(case, ()):
        with pytest.raises(ValueError, match="very extreme"):
            Phi4Images(OPTIONS[case])(picture)
        with pytest.raises(VlmcError, match="too narrow"):
            prepare(picture, spec)
        return
    theirs = Phi4Images(OPTIONS[case])(picture)
    ours = prepare(picture, spec)
    pixels, wanted = ours.tensors["pixel_values"], theirs["image_pixel_values"][0].numpy()
    # The whole picture by halves: torch adds them in an order of its own.
    unlike = 1e-6 * np.abs(wanted).max() if case == "bilinear" else 0
    assert np.abs(pixels - wanted).max() <= unlike
    seen = theirs["image_attention_mask"][0].flatten(1).numpy()
    assert np.array_equal(ours.tensors["patch_places"] >= 0, seen == 1)
    assert ours.tensors["one_way"] == [seen.all()]
    assert [ours.tokens] == theirs["num_img_tokens"]
    assert ours.tokens == len(ours.tensors["packing"]) == image_tokens(shape[1], shape[0], spec)
    assert [one.name for one in vision_inputs(spec)] == list(ours.tensors)


@pytest.mark.parametrize("side", [4, 5, 31, 32])
def test_places_are_those_of_transformers(side):
    import torch

    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    for seen in range(1, side + 1):
        step = 1.0 / torch.tensor([seen])
        places = torch.clamp(torch.arange(seen, dtype=torch.float32) * step, max=1.0 - 1e-6)
        wanted = torch.bucketize(places, boundaries, right=True)
        assert np.array_equal(buckets(seen, side), wanted.numpy())


def test_padding_of_one_picture_bears_on_all_of_a_prompt(draw):
    spec = spec_of(SIZE)
    full, padded = prepare(draw(56, 28), spec), prepare(draw(40, 28), spec)
    assert (full.tensors["one_way"], padded.tensors["one_way"]) == (1, 0)
    flags = [one.tensors["one_way"].tolist() for one in together([full, padded, full], spec)]
    assert flags == [[0], [0], [0]]
    assert together([full, full], spec)[1].tensors["one_way"] == 1
    assert together([], spec) == []


@pytest.mark.parametrize(
    ("options", "bounds", "expected"),
    [
        ({**SIZE, "size": {"height": 56, "width": 56}}, {}, "56 x 56 pixels"),
        ({**SIZE, "resample": 1}, {}, "resample"),
        (SIZE, {"max_tiles": 0}, "images.max-tiles"),
        ({**SIZE, "patch_size": 29}, {}, "a patch of 29 pixels"),
        ({**SIZE, "dynamic_hd": "many"}, {}, "max_tiles"),
    ],
)
def test_what_cannot_be_is_refused(options, bounds, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(options, **bounds)


def test_a_processor_of_other_patches_is_refused():
    given = {"image_processor_type": "Phi4MultimodalImageProcessor", **SIZE}
    with pytest.raises(VlmcError, match="patch_size is 7, the model's 14"):
        hd_crops_spec(given, image_size=28, patch_size=14)
