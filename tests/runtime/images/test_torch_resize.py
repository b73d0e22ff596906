"""Resizing as torch does it, against torch."""

import numpy as np
import pytest
from PIL import Image

from vlmc.runtime.images.torch_resize import FILTERS, resized

SIZES = [
    (97, 31, 28, 56), (30, 80, 84, 28), (5, 4, 28, 28), (300, 401, 512, 512), (640, 480, 56, 56),
    (64, 64, 28, 28), (28, 31, 28, 28), (31, 28, 28, 28), (1, 400, 28, 28), (400, 1, 7, 28),
    (1, 1, 3, 5), (2, 3, 300, 1), (333, 777, 1, 1), (1000, 17, 999, 18), (28, 28, 28, 28),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resample", FILTERS)
def test_levels_equal_torchs_bit_for_bit(size, resample):
    import torch

    height, width, *new = size
    levels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Black on white: overshoots are cut off after each step.
    levels[: height // 2] = np.where(levels[: height // 2] > 127, 255, 0)
    given = torch.from_numpy(levels).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(
        given, size=new, mode=resample, antialias=True, align_corners=False
    )
    assert np.array_equal(resized(levels, *new, resample), theirs[0].permute(1, 2, 0).numpy())


def test_pillow_is_near_but_not_the_same():
    levels = np.random.default_rng(7).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(levels).resize((512, 512), Image.Resampling.BICUBIC))
    apart = np.abs(pillow.astype(int) - resized(levels, 512, 512, "bicubic"))
    assert 1 <= apart.max() <= 2
    assert 0.001 < (apart > 0).mean() < 0.01
