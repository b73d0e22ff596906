"""LFM2-VL's pictures, against transformers' arithmetic: its class itself needs torchvision."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.errors import VlmcError
from vlmc.families.grid_processors import naflex_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs
from vlmc.runtime.images.naflex import Options, cuts, target_size, tile_grid
from vlmc.runtime.images.patches import positions
from vlmc.runtime.images.position_table import spread

NAMED = {"image_processor_type": "Lfm2VlImageProcessorFast"}
SIDES = st.integers(1, 4000)


def options(**changes):
    return Options.model_validate(
        naflex_spec({**NAMED, **changes}, 16, 2, 16).options, strict=False
    )


def test_a_large_picture_may_be_one_tile():
    found = options(min_tiles=1, max_tiles=3)
    assert tile_grid(1600, 1600, options(min_tiles=2, max_tiles=4)) == (2, 2)
    assert tile_grid(900, 880, found) == (0, 0)
    assert cuts(900, 900, found) == ((32, 32),)
    assert tile_grid(800, 1600, found) == (1, 2)
    assert options(min_tiles=1, max_tiles=1).max_tiles == 1


@settings(max_examples=300, deadline=None)
@given(height=SIDES, width=SIDES)
def test_sizes_and_counts_follow_the_class(height, width):
    found = options()
    tall, wide = target_size(height, width, found)
    assert tall % 32 == wide % 32 == 0
    # Within the bounds, but for the rounding of a narrow picture.
    assert tall * wide <= 256 * 32**2 or min(tall, wide) == 32
    assert tall * wide >= 64 * 32**2 or max(round(height / 32), round(width / 32)) > 64
    rows, columns = tile_grid(height, width, found)
    large = max(16, round(height / 32) * 32) * max(16, round(width / 32) * 32) > 2 * 256 * 32**2
    assert bool(rows) == large
    if large:
        assert 2 <= rows * columns <= 10
        ratios = {(c, r) for c in range(1, 11) for r in range(1, 11) if 2 <= c * r <= 10}
        nearest = min(abs(width / height - c / r) for c, r in ratios)
        assert math.isclose(abs(width / height - columns / rows), nearest)
    shapes = cuts(height, width, found)
    assert shapes == ((32, 32),) * (rows * columns) + ((tall // 16, wide // 16),)


@pytest.mark.parametrize("side", [1, 5, 16])
def test_shares_of_positions_are_those_of_an_antialiased_resize(side):
    import torch

    table = torch.randn(side, side, 3)
    for rows, columns in [(2, 2), (2, 128), (32, 32), (6, 10), (16, 4)]:
        wanted = torch.nn.functional.interpolate(
            table.permute(2, 0, 1)[None],
            size=(rows, columns),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0].permute(1, 2, 0)
        places = positions(rows, columns, 2)
        found = spread(places, rows, columns, side) @ table.reshape(-1, 3).numpy()
        np.testing.assert_allclose(found, wanted.numpy()[tuple(places.T)], atol=2e-6)


@pytest.mark.parametrize("shape", [(40, 60), (300, 200), (1200, 900), (130, 1500)], ids=str)
def test_pixels_are_those_of_torch_but_for_a_rounding(shape, draw):
    import torch

    picture = draw(*shape)
    spec = naflex_spec(NAMED, 16, 2, 16)
    found, read = prepare(picture, spec), options()
    rows, columns = found.tiles
    shapes = cuts(picture.height, picture.width, read)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]

    def resized(height, width):
        return torch.nn.functional.interpolate(
            pixels, size=(height, width), mode="bilinear", antialias=True
        )[0].numpy()

    whole = [(tall * 16, wide * 16) for tall, wide in shapes[rows * columns :]]
    parts = [resized(*size) for size in whole]
    if rows:
        large = resized(rows * 512, columns * 512)
        tiles = large.reshape(3, rows, 512, columns, 512).transpose(1, 3, 0, 2, 4)
        parts = [*tiles.reshape(-1, 3, 512, 512), *parts]
    start, far = 0, 0.0
    for (tall, wide), part in zip(shapes, parts, strict=True):
        places = positions(tall, wide, 2)
        patches = part.reshape(3, tall, 16, wide, 16).transpose(1, 3, 2, 4, 0)
        wanted = (patches[tuple(places.T)].reshape(tall * wide, -1) - 127.5) / 127.5
        here = found.tensors["pixel_values"][start : start + tall * wide]
        assert np.abs(here - wanted).max() < 1.01 / 127.5
        far = max(far, float((here != wanted.astype(np.float32)).mean()))
        start += tall * wide
    assert far < 0.02
    assert start == len(found.tensors["pixel_values"])
    assert found.tokens == sum(found.runs) == image_tokens(picture.height, picture.width, spec)


def test_inputs_are_as_promised(draw):
    for settings_, size in [
        ({}, (900, 1200)),
        ({"use_thumbnail": False}, (900, 1200)),
        ({}, (8, 9)),
    ]:
        spec = naflex_spec({**NAMED, **settings_}, 16, 2, 4)
        found, free = prepare(draw(*size), spec), {}
        for promised in vision_inputs(spec):
            tensor = found.tensors[promised.name]
            assert tensor.dtype == promised.dtype
            for length, name in zip(tensor.shape, promised.shape, strict=True):
                assert length == (free.setdefault(name, length) if isinstance(name, str) else name)
        slots, order = found.tensors["tile_patches"], found.tensors["patch_slots"]
        assert np.array_equal(slots.reshape(-1)[order], np.arange(len(order)))
        assert len(found.runs) == 1 + found.tiles[0] * found.tiles[1]
        if settings_:
            assert found.runs[-1] == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder_patch_size": 14}, "encoder_patch_size is 14, the model's 16"),
        ({"downsample_factor": 3}, "downsample_factor is 3, the model's 2"),
        ({"do_normalize": False}, "always rescaled and normalized"),
        ({"tile_size": 500}, "a tile of 500 pixels cuts merged patches"),
        ({"resample": 0}, "resample is one of bilinear, bicubic here"),
        ({"min_tiles": 11}, "11 to 10 tiles are no grid"),
        ({"min_image_tokens": 300}, "min_tokens"),
        ({"image_processor_type": "CLIPImageProcessor"}, "unknown image processor"),
    ],
)
def test_settings_that_are_refused(changes, expected):
    with pytest.raises(VlmcError, match=expected):
        naflex_spec({**NAMED, **changes}, 16, 2, 16)
