import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.pan_and_scan_processor import pan_and_scan_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (300, 300), (640, 256), (256, 640), (1300, 260), (259, 1290), (512, 430), (513, 255), (1, 900),
    (613, 511), (700, 300), (1537, 512), (515, 1031), (768, 256), (1024, 256), (257, 771),
]  # fmt: skip
OPTIONS = {
    "small": {"size": {"height": 56, "width": 56}},
    "bicubic": {"size": {"height": 48, "width": 64}, "resample": 3, "do_rescale": False},
}


def spec_of(options, most):
    side = options["size"]["height"]
    options = options | {"size": {"height": side, "width": side}}
    given = {"image_processor_type": "Gemma3ImageProcessor", **options}
    return pan_and_scan_spec(given, 4, image_size=side, max_tiles=most)


@pytest.mark.parametrize("most", [2, 4])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crops_equal_transformers_bit_for_bit(case, shape, most, draw):
    from transformers import Gemma3ImageProcessorPil

    spec, picture = spec_of(OPTIONS[case], most), draw(*shape)
    size = {"size": spec_size(spec)}
    processor = Gemma3ImageProcessorPil(**{**OPTIONS[case], **size})
    theirs = processor(
        picture,
        return_tensors="np",
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=most,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    ours = prepare(picture, spec)
    pixels = ours.tensors["pixel_values"]
    assert np.array_equal(pixels, theirs["pixel_values"].astype(np.float32))
    assert ours.tiles[0] * ours.tiles[1] == theirs["num_crops"][0]
    assert ours.tokens == 4 * len(pixels) == image_tokens(shape[1], shape[0], spec)
    assert vision_inputs(spec)[0].shape == ("tiles", *pixels.shape[1:])


def spec_size(spec):
    return {key: spec.options[key] for key in ("height", "width")}


def test_every_count_of_crops_is_seen():
    spec = spec_of(OPTIONS["small"], 4)
    found = {image_tokens(height, width, spec) // 4 - 1 for width, height in SHAPES}
    assert found == {0, 2, 3, 4}


def test_one_crop_is_no_crop():
    with pytest.raises(VlmcError, match="max_tiles"):
        spec_of(OPTIONS["small"], 1)
