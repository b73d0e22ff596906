"""MiniCPM-V's pictures against transformers: the same pixels, those of a feature row together."""

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.slices_processor import slices_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [(60, 60), (61, 141), (300, 97), (2, 3), (500, 20), (17, 330), (130, 131), (400, 410)]
PATCH = 7
SMALL = {"patch_size": PATCH, "scale_resolution": 112}
OPTIONS = {
    "16x": SMALL,
    "4x": {**SMALL, "downsample_mode": "4x", "scale_resolution": 60},
    "many": {**SMALL, "scale_resolution": 45, "max_slice_nums": 23, "resample": 1},
    "few": {**SMALL, "max_slice_nums": 2, "do_rescale": False, "image_mean": [0.1, 0.2, 0.3]},
    "whole": {**SMALL, "slice_mode": False, "do_convert_rgb": False, "do_normalize": False},
}


def oracle(options):
    from transformers import MiniCPMV4_6ImageProcessorPil

    return MiniCPMV4_6ImageProcessorPil(**options)


def spec_of(options):
    merge = 2 if options.get("downsample_mode") == "4x" else 4
    settings = {"image_processor_type": "MiniCPMV4_6ImageProcessor", **options}
    return slices_spec(settings, PATCH, merge)


def merged(rows, columns, merge):
    """Patches of each feature row of a part, window by window: [tokens, merge**2]."""
    places = np.arange(rows * columns).reshape(rows, columns)
    blocks = [
        places[y : y + merge, x : x + merge]
        for y in range(0, rows, merge)
        for x in range(0, columns, merge)
    ]
    if merge == 2:
        return np.array([block.reshape(-1) for block in blocks])
    corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
    return np.array([[block[y : y + 2, x : x + 2] for y, x in corners] for block in blocks])


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(case, shape, draw):
    import torch
    from transformers.vision_utils import get_vision_nearest_position_ids

    options, picture = OPTIONS[case], draw(*shape)
    spec, merge = spec_of(options), 2 if case == "4x" else 4
    theirs = oracle(options)([picture], return_tensors="np")
    ours = prepare(picture, spec)
    sizes, (rows, columns) = theirs["target_sizes"], theirs["grids"][0]
    assert ours.tiles == (rows, columns)
    assert ours.shapes == tuple((int(h) // merge, int(w) // merge) for h, w in sizes)
    assert ours.runs == tuple(h * w for h, w in ours.shapes)
    assert ours.tokens == sum(ours.runs) == image_tokens(shape[1], shape[0], spec)
    # [1, C, ps, P * ps]: side by side, row by row.
    patches = theirs["pixel_values"][0].reshape(3, PATCH, -1, PATCH).transpose(2, 0, 1, 3)
    patches = patches.reshape(len(patches), -1).astype(np.float32)
    found, slots = ours.tensors["pixel_values"], ours.tensors["tile_patches"]
    order, before = [], 0
    for (tall, wide), own in zip(sizes, slots, strict=True):
        order.append(merged(tall, wide, merge).reshape(-1) + before)
        kept = own[own >= 0]
        assert np.array_equal(kept, np.arange(before, before + tall * wide))
        assert (own[len(kept) :] == -1).all()
        before += tall * wide
    order = np.concatenate(order)
    assert np.array_equal(found, patches[order])
    assert np.array_equal(slots.reshape(-1)[ours.tensors["patch_slots"]], np.arange(len(found)))
    side = 10
    ends = torch.arange(1 / side, 1.0, 1 / side).numpy()
    buckets = (ours.tensors["patch_places"][..., None] >= ends).sum(-1)
    wanted = get_vision_nearest_position_ids(torch.from_numpy(sizes), side).numpy()
    assert np.array_equal(buckets @ [side, 1], wanted[order])
    assert [spec.name for spec in vision_inputs(spec)] == list(ours.tensors)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "CMYK"])
def test_pictures_that_were_not_opened_here(mode, draw):
    picture = draw(145, 160, mode)
    theirs = oracle(SMALL)([picture], return_tensors="np")["pixel_values"]
    ours = prepare(picture, spec_of(SMALL)).tensors["pixel_values"]
    assert np.array_equal(np.sort(ours.reshape(-1)), np.sort(theirs.reshape(-1)))


def test_a_line_is_refused_where_it_would_grow_beyond_all_bounds():
    spec = slices_spec(
        {"image_processor_type": "MiniCPMV4_6ImageProcessor", "scale_resolution": 20_000}, 14, 4
    )
    with pytest.raises(VlmcError, match="too narrow for this model: it would grow to"):
        image_tokens(1, 20, spec)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"patch_size": 14}, "the processor's patches have 14 pixels, the tower's 7"),
        ({**SMALL, "downsample_mode": "4x"}, "a token for 2 patches along each side"),
        ({**SMALL, "do_resize": False}, "pictures are always resized here"),
        ({**SMALL, "max_slice_nums": 0}, "greater than 0"),
    ],
)
def test_settings_that_are_refused(options, expected):
    with pytest.raises(VlmcError, match=expected):
        slices_spec({"image_processor_type": "MiniCPMV4_6ImageProcessor", **options}, PATCH, 4)
