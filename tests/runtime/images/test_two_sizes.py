import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families.two_sizes_processor import two_sizes_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [(30, 90), (90, 30), (28, 28), (5, 4), (200, 20), (54, 54), (97, 31), (1, 300), (113, 55)]
SIZES = {"size": {"height": 28, "width": 28}, "high_res_size": {"height": 54, "width": 54}}
OPTIONS = {
    "plain": SIZES,
    "colors": {**SIZES, "image_mean": [0.1, 0.5, 0.9], "high_res_image_std": [0.2, 0.3, 0.7]},
    "filters": {**SIZES, "resample": 2, "high_res_resample": 0, "min_size": 9},
    "not rescaled": {**SIZES, "do_rescale": False},
    "not normalized": {**SIZES, "do_normalize": False},
}


def spec_of(options, side=28, high=54):
    given = {"image_processor_type": "DeepseekVLHybridImageProcessor", **options}
    return two_sizes_spec(given, 16, image_size=side, high_res=high)


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_frames_equal_transformers_bit_for_bit(case, shape, draw):
    import transformers as hf

    spec, picture = spec_of(OPTIONS[case]), draw(*shape)
    theirs = hf.DeepseekVLHybridImageProcessorPil(**OPTIONS[case])(picture)
    ours = prepare(picture, spec)
    assert [one.name for one in vision_inputs(spec)] == list(ours.tensors)
    for name, values in ours.tensors.items():
        assert np.array_equal(values, np.stack(theirs[name]).astype(np.float32)), name
    assert ours.tokens == image_tokens(shape[1], shape[0], spec) == 16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({**SIZES, "size": {"height": 27, "width": 27}}, "27 x 27 pixels"),
        ({**SIZES, "high_res_size": {"height": 60, "width": 60}}, "60 x 60 pixels"),
        ({**SIZES, "high_res_size": {"height": 54, "width": 60}}, "is no square"),
        ({**SIZES, "do_pad": False}, "shapes of their own"),
        ({**SIZES, "do_resize": False}, "shapes of their own"),
        ({**SIZES, "min_size": "few"}, "min_size"),
        ({**SIZES, "high_res_resample": 9}, "no filter"),
        ({**SIZES, "image_processor_type": "JanusImageProcessor"}, "unknown image processor"),
    ],
)
def test_what_cannot_be_is_refused(options, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(options)
