"""LLaVA-OneVision's pictures, alone and among others, and the features they leave."""

import json

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import ONEVISION, anyres_spec
from vlmc.runtime.images import anyres, corners, image_tokens, prepare, vision_inputs

SIDE, ROWS = 28, 4
PINPOINTS = [[28 * down, 28 * across] for down in range(1, 5) for across in range(1, 5)]
SHAPES = [
    (28, 28), (40, 30), (30, 41), (1, 1), (1, 200), (200, 1), (17, 640), (641, 7), (103, 76),
    (56, 56), (112, 112), (113, 111), (84, 28), (97, 31), (600, 1100), (1100, 300),
]  # fmt: skip
OPTIONS = {
    "default": {},
    "as published": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
    "edge": {"size": {"shortest_edge": SIDE}},
    "levels": {"do_rescale": False, "do_normalize": False},
    "cropped": {"do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}},
}


def settings(options):
    size = {"height": SIDE, "width": SIDE}
    return {"size": size, "image_grid_pinpoints": PINPOINTS} | options


def oracle(options):
    from transformers import LlavaOnevisionImageProcessorPil

    return LlavaOnevisionImageProcessorPil(**settings(options))


def spec_of(options, most_tiles=3, **changes):
    values = {"image_processor_type": ONEVISION, **settings(options)}
    given = {"side": SIDE, "rows": ROWS, "pinpoints": values["image_grid_pinpoints"]}
    return anyres_spec(values, kind=ONEVISION, most_tiles=most_tiles, **given | changes)


@pytest.fixture(scope="module")
def packed():
    """``pack_image_features`` of the model on numbers that tell every row from every other."""
    import torch
    from transformers import LlavaOnevisionConfig
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    vision = {"model_type": "siglip_vision_model", "image_size": SIDE, "patch_size": SIDE // ROWS}
    config = LlavaOnevisionConfig(vision_config=vision, image_grid_pinpoints=PINPOINTS)
    stand_in = type("Model", (), {"config": config})()

    def pack(size, tiles, most_tiles):
        random = torch.Generator().manual_seed(0)
        features = torch.randn(tiles, ROWS * ROWS, 2, generator=random)
        line_break = torch.tensor([7.0, -7.0])
        [found], _ = LlavaOnevisionModel.pack_image_features(
            stand_in, [features], [size], line_break, f"anyres_max_{most_tiles}"
        )
        return torch.cat([features.flatten(0, 1), line_break[None]]).numpy(), found.numpy()

    return pack


def blended(rows, packing, shares):
    return (rows[packing] * shares[..., None]).sum(axis=1)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alone_and_among_others_it_equals_transformers_bit_for_bit(case, shape, draw, packed):
    spec, process = spec_of(OPTIONS[case]), oracle(OPTIONS[case])
    picture, other = draw(*shape), draw(50, 20)
    given = {1: [[picture]], 2: [[picture, other]], 3: [[other, picture, other]]}
    for count, pictures in given.items():
        theirs = process(pictures, return_tensors="np")["pixel_values"][count // 2 * (count == 3)]
        ours = prepare(picture, spec, count=count)
        assert np.array_equal(ours.tensors["pixel_values"], theirs)
        assert ours.tokens == image_tokens(*picture.size[::-1], spec, count=count)
        rows, expected = packed(picture.size[::-1], len(theirs), 3)
        tensors = ours.tensors
        found = blended(rows, tensors["packing"], tensors["shares"])
        assert tensors["shares"].dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-6)
    shapes = [(tensor.name, tensor.shape) for tensor in vision_inputs(spec)]
    four = ("image_tokens", 4)
    tiles = ("tiles", 3, SIDE, SIDE)
    assert shapes == [("pixel_values", tiles), ("packing", four), ("shares", four)]


@pytest.mark.parametrize("most_tiles", [1, 2, 9])
def test_counts_and_features_equal_transformers_on_every_size(most_tiles, packed):
    from transformers import LlavaOnevisionProcessor

    spec = spec_of({}, most_tiles)
    options = anyres.Options.model_validate_json(json.dumps(spec.options))
    stand_in = type("Processor", (LlavaOnevisionProcessor,), {"__init__": lambda self: None})()
    stand_in.image_processor, stand_in.num_image_tokens = oracle({}), ROWS**2
    stand_in.vision_aspect_ratio = f"anyres_max_{most_tiles}"
    least = anyres.least_tokens(options)
    sizes = np.random.default_rng(most_tiles).integers(1, 900, (300, 2)).tolist()
    shrunk = 0
    for height, width in [*sizes, [1, 5000], [5000, 1], [3, 4000]]:
        count = image_tokens(height, width, spec)
        assert count == stand_in._get_number_of_features(height, width, SIDE, SIDE) >= least
        down, across = anyres.resolution(height, width, options)
        rows, expected = packed([height, width], down * across // SIDE**2 + 1, most_tiles)
        packing, shares = anyres.packing(height, width, options)
        np.testing.assert_allclose(blended(rows, packing, shares), expected, atol=2e-6)
        shrunk += bool((shares[:, 0] < 1).any())
    assert shrunk > (20 if most_tiles < 9 else 5)


@pytest.mark.parametrize("shape", [(3, 5), (7, 7), (1, 4), (81, 64), (0, 4)], ids=str)
@pytest.mark.parametrize("target", [(2, 3), (7, 4), (1, 1), (9, 11)], ids=str)
def test_corners_are_those_of_torch(shape, target):
    import torch

    if not shape[0]:
        rows, shares = corners.bilinear(np.zeros(shape, dtype=np.int64), 0, shape[1])
        assert rows.shape == shares.shape == (0, shape[1], 4)
        return
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(values[None, None], target, mode="bilinear")[0, 0]
    grid = np.arange(values.numel()).reshape(shape)
    rows, shares = corners.bilinear(grid, *target)
    found = (values.flatten().numpy()[rows] * shares).sum(axis=-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_a_picture_too_narrow_for_a_square_is_refused(draw):
    spec = spec_of({})
    with pytest.raises(VlmcError, match="too narrow"):
        image_tokens(1, 12_000, spec, count=2)
    with pytest.raises(VlmcError, match="too narrow"):
        prepare(draw(12_000, 1), spec, count=2)
    assert prepare(draw(12_000, 1), spec).tokens == image_tokens(1, 12_000, spec)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": {"height": 14, "width": 14}}, "tower takes 28 x 28"),
        ({"crop_size": {"height": 14, "width": 14}}, "tower takes 28 x 28"),
        ({"do_resize": False}, "keep their own size"),
        ({"image_mean": [2.0, 0.5, 0.5]}, "not a color to pad with"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "did you mean"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options, expected):
    with pytest.raises(VlmcError) as caught:
        spec_of(options)
    assert expected in str(caught.value)
