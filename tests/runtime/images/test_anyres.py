import json

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import anyres_spec
from vlmc.runtime.images import anyres, image_tokens, open_image, prepare, vision_inputs

SIDE, ROWS = 28, 4
SMALL = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
SHAPES = [
    (28, 28), (40, 30), (30, 41), (29, 27), (1, 1), (1, 200), (200, 1), (3, 2), (17, 640),
    (641, 7), (103, 76), (56, 56), (84, 28), (55, 57), (97, 31), (600, 1100),
]  # fmt: skip
OPTIONS = {
    "default": {},
    "siglip": {"size": {"height": SIDE, "width": SIDE}, "resample": 2, "image_mean": [0.5] * 3},
    "levels": {"do_rescale": False},
    "raw": {"do_rescale": False, "do_normalize": False, "do_convert_rgb": False},
    "one": {"image_grid_pinpoints": [[28, 28]]},
    "many": {"image_grid_pinpoints": [[28 * h, 28 * w] for h in range(1, 6) for w in range(1, 4)]},
}


def settings(options):
    crop = {"height": SIDE, "width": SIDE}
    given = {"size": {"shortest_edge": SIDE}, "crop_size": crop, "image_grid_pinpoints": SMALL}
    return given | options


def oracle(options):
    from transformers import LlavaNextImageProcessorPil

    return LlavaNextImageProcessorPil(**settings(options))


def spec_of(options, rows=ROWS, **changes):
    values = {"image_processor_type": "LlavaNextImageProcessor", **settings(options)}
    given = {"side": SIDE, "rows": rows, "pinpoints": values["image_grid_pinpoints"]}
    return anyres_spec(values, **given | changes)


def options_of(spec):
    return anyres.Options.model_validate_json(json.dumps(spec.options))


@pytest.fixture(scope="module")
def joiner():
    """``pack_image_features`` of a model, by its resolutions and the rows of a tile."""
    import torch
    from transformers import LlavaNextConfig
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

    def join(size, pinpoints, rows, tiles):
        vision = {"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": SIDE // rows}
        config = LlavaNextConfig(vision_config=vision, image_grid_pinpoints=pinpoints)
        stand_in = type("Model", (), {"config": config})()
        features = torch.arange(tiles * rows * rows).reshape(tiles, rows * rows, 1)
        [found], _ = LlavaNextModel.pack_image_features(
            stand_in, [features], [size], "default", torch.tensor([features.numel()])
        )
        return found[:, 0].numpy()

    return join


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_equal_transformers_bit_for_bit(case, shape, draw, joiner):
    spec = spec_of(OPTIONS[case])
    picture = draw(*shape)
    theirs = oracle(OPTIONS[case])(picture, return_tensors="np")["pixel_values"][0]
    ours = prepare(picture, spec)
    found, order = ours.tensors["pixel_values"], ours.tensors["packing"]
    assert found.dtype == np.float32
    assert np.array_equal(found, theirs)
    pinpoints = settings(OPTIONS[case])["image_grid_pinpoints"]
    expected = joiner(picture.size[::-1], pinpoints, ROWS, len(theirs))
    assert order.dtype == np.int64
    assert np.array_equal(order, expected)
    assert ours.tokens == len(order) == image_tokens(picture.height, picture.width, spec)
    tiles, packing = vision_inputs(spec)
    assert (tiles.name, tiles.shape) == ("pixel_values", ("tiles", 3, SIDE, SIDE))
    assert (packing.name, packing.dtype, packing.shape) == ("packing", "int64", ("image_tokens",))


@pytest.mark.parametrize("rows", [2, 4, 7])
@pytest.mark.parametrize("case", ["default", "many"])
def test_counts_and_packing_equal_transformers_on_every_size(case, rows, joiner):
    from transformers import LlavaNextProcessor

    spec = spec_of(OPTIONS[case], rows)
    options = options_of(spec)
    pinpoints = settings(OPTIONS[case])["image_grid_pinpoints"]
    stand_in = type("Processor", (LlavaNextProcessor,), {"__init__": lambda self: None})()
    stand_in.image_processor = oracle(OPTIONS[case])
    stand_in.patch_size, stand_in.num_additional_image_tokens = SIDE // rows, 0
    least = anyres.least_tokens(options)
    seen = set()
    sizes = np.random.default_rng(0).integers(1, 1500, (400, 2)).tolist()
    sizes += [[1, 5000], [5000, 1], [28, 28], [84, 28], [3, 4000], [4000, 3]]
    for height, width in sizes:
        count = image_tokens(height, width, spec)
        assert count == stand_in._get_number_of_features(height, width, SIDE, SIDE)
        assert count >= least
        seen.add(count)
        order, shares = anyres.packing(height, width, options)
        target = anyres.resolution(height, width, options)
        tiles = target[0] * target[1] // SIDE**2 + 1
        assert np.array_equal(order[:, 0], joiner([height, width], pinpoints, rows, tiles))
        assert (shares == [1, 0, 0, 0]).all()
    assert len(seen) > 5


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK"])
def test_pictures_that_were_not_opened_here(mode, draw):
    picture = draw(45, 60, mode)
    theirs = oracle({})(picture, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(prepare(picture, spec_of({})).tensors["pixel_values"], theirs)


def test_a_file_with_a_transparent_color(draw, save):
    path = save(draw(45, 60, "P"), "transparent.png", transparency=3)
    theirs = oracle({})(str(path), return_tensors="np")["pixel_values"][0]
    ours = prepare(open_image(path, at="x"), spec_of({})).tensors["pixel_values"]
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        ({"size": {"shortest_edge": 14}}, {}, "tower takes 28 x 28"),
        ({"crop_size": {"height": 28, "width": 14}}, {}, "tower takes 28 x 28"),
        ({"size": {"longest_edge": 28}}, {}, "tower takes 28 x 28"),
        ({}, {"pinpoints": [[28, 28]]}, "not those of the model"),
        ({"image_grid_pinpoints": [[28, 30]]}, {}, "cannot be cut into tiles of 28"),
        ({"image_grid_pinpoints": []}, {}, "no resolution"),
        ({"image_grid_pinpoints": [[28 * 10**4] * 2]}, {}, "too many"),
        ({"image_grid_pinpoints": [[28]]}, {}, "resolutions.0"),
        ({"image_grid_pinpoints": 3}, {}, "resolutions"),
    ],
)
def test_what_does_not_fit_the_tower_is_refused(options, changes, expected):
    with pytest.raises(VlmcError) as caught:
        spec_of(options, **changes)
    assert expected in str(caught.value)
