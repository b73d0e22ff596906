import numpy as np
import pytest

from vlmc.families.overlap_processor import overlap_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (640, 480), (400, 300), (301, 400), (28, 28), (29, 27), (1, 1), (1, 90), (97, 1), (3, 2),
    (17, 640), (641, 7), (500, 260), (21, 21), (42, 42), (300, 9),
]  # fmt: skip
OPTIONS = {
    "plain": ({"max_crops": 4, "overlap_margins": [2, 1]}, 7, 6),
    "odd": ({"max_crops": 6, "overlap_margins": [0, 2], "pooling_size": [3, 2]}, 5, 7),
    "none": ({"max_crops": 5, "overlap_margins": [0, 0], "image_mean": [0.4, 0.5, 0.6]}, 8, 4),
    "levels": ({"max_crops": 1, "do_normalize": False, "overlap_margins": [1, 1]}, 7, 4),
    "raw": ({"do_rescale": False, "do_normalize": False, "overlap_margins": [1, 0]}, 4, 5),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crops_equal_transformers_bit_for_bit(case, shape, draw):
    from tests.build.torch_images import Molmo2Images

    settings, patch, per = OPTIONS[case]
    given = {"image_processor_type": "Molmo2ImageProcessor", **settings, "patch_size": patch}
    given["size"] = {"height": patch * per, "width": patch * per}
    spec = overlap_spec(given, image_size=patch * per, patch=patch)
    picture = draw(*shape)
    theirs, ours = Molmo2Images(given)([picture]), prepare(picture, spec)
    pixels, pooled = ours.tensors["pixel_values"], ours.tensors["token_patches"]
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels, theirs["pixel_values"].float().numpy())
    assert np.array_equal(pooled, theirs["image_token_pooling"].numpy())
    down, across, high, wide = theirs["image_grids"][0].tolist()
    assert ours.runs == (across,) * down + (wide,) * high
    assert ours.tokens == sum(ours.runs) == image_tokens(shape[1], shape[0], spec)
    assert ours.tiles == (down + high - 1, 1)
    for promised in vision_inputs(spec):
        tensor = ours.tensors[promised.name]
        assert tensor.dtype == promised.dtype
        assert tensor.shape[1:] == promised.shape[1:]


SIZES = [
    (97, 31, 28, 56), (30, 80, 84, 28), (5, 4, 28, 28), (300, 401, 378, 602), (64, 64, 28, 28),
    (28, 31, 28, 28), (1, 400, 28, 28), (1, 1, 3, 5), (2, 3, 300, 1), (28, 28, 28, 28),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_levels_without_antialiasing_equal_torchs(size):
    import torch

    from vlmc.runtime.images.torch_bilinear import resized

    height, width, *new = size
    levels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    given = torch.from_numpy(levels).permute(2, 0, 1)[None].float().contiguous()
    theirs = torch.nn.functional.interpolate(given, size=new, mode="bilinear")
    theirs = theirs.round().clamp(0, 255).to(torch.uint8)
    assert np.array_equal(resized(levels, *new), theirs[0].permute(1, 2, 0).numpy())
