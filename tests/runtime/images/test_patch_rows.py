import numpy as np
import pytest

from tests.checkpoints.towerless import FUYU_WORDS, unigram
from vlmc.errors import VlmcError
from vlmc.families.patch_rows_processor import patch_rows_spec
from vlmc.passes.stand_in import cut_tensors
from vlmc.runtime.images import image_tokens, prepare, vision_inputs

SHAPES = [
    (30, 90), (90, 30), (64, 32), (32, 64), (5, 4), (200, 20), (64, 64), (97, 31), (1, 1), (1, 300),
    (65, 33), (400, 391), (8, 8), (9, 8), (63, 31), (640, 7),
]  # fmt: skip
SIZE = {"size": {"height": 32, "width": 64}, "patch_size": {"height": 8, "width": 8}}
OPTIONS = {
    "as it is": SIZE,
    "lists": {"size": [32, 64], "patch_size": 8},
    "oblong": {"size": {"height": 33, "width": 60}, "patch_size": {"height": 11, "width": 4}},
    "bicubic": {**SIZE, "resample": 3, "padding_value": 200},
    "edge": {**SIZE, "padding_mode": "edge"},
    "reflect": {**SIZE, "padding_mode": "reflect"},
    "symmetric": {**SIZE, "padding_mode": "symmetric", "do_normalize": False},
    "colors": {**SIZE, "image_mean": [0.1, 0.48, 0.9], "image_std": [0.26, 0.3, 0.71]},
    "no multiple": {**SIZE, "size": {"height": 30, "width": 61}},
    "not resized": {**SIZE, "do_resize": False},
    "not padded": {**SIZE, "do_pad": False},
    "bytes": {**SIZE, "do_rescale": False, "do_normalize": False},
}

REFUSED = "does not fit|nothing of it|larger than"


def spec_of(options):
    given = {"image_processor_type": "FuyuImageProcessorPil", **options}
    patch = options["patch_size"]
    patch = patch if isinstance(patch, dict) else {"height": patch, "width": patch}
    return patch_rows_spec(given, 3 * patch["height"] * patch["width"])


@pytest.fixture(scope="module")
def theirs():
    """``FuyuProcessor`` around an image processor of these options."""
    import transformers as hf

    words = unigram(["<unk>", "<s>", "</s>"], FUYU_WORDS)

    def make(options):
        images = hf.FuyuImageProcessorPil(**options)
        cut_tensors(images)
        return hf.FuyuProcessor(images, words)

    return make


@pytest.mark.parametrize("case", OPTIONS)
def test_patches_equal_transformers_bit_for_bit(case, draw, theirs):
    spec, processor = spec_of(OPTIONS[case]), theirs(OPTIONS[case])
    seen = 0
    for shape in SHAPES:
        picture = draw(*shape)
        try:
            wanted = processor(text="x", images=picture)
        except ValueError:
            with pytest.raises(VlmcError, match=REFUSED):
                prepare(picture, spec)
            with pytest.raises(VlmcError, match=REFUSED):
                image_tokens(*shape[::-1], spec)
            continue
        seen += 1
        found = prepare(picture, spec)
        pixels = found.tensors["pixel_values"]
        assert pixels.dtype == np.float32
        assert np.array_equal(pixels, wanted["image_patches"].numpy())
        rows = wanted["input_ids"][0].tolist().count(processor.image_newline_id)
        assert found.grid == (1, rows, len(pixels) // rows)
        assert found.tokens == len(pixels) == image_tokens(*shape[::-1], spec)
        assert vision_inputs(spec)[0].shape == ("patches", pixels.shape[1])
    assert seen > 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({**SIZE, "padding_mode": "wrap"}, "padding_mode"),
        ({**SIZE, "padding_value": 256.0}, "less than or equal to 255"),
        ({**SIZE, "padding_value": "1"}, "not a number"),
        ({**SIZE, "size": {"shortest_edge": 30}}, "no height and width"),
        ({**SIZE, "resample": 9}, "resample"),
        ({**SIZE, "do_pad": 1}, "neither true nor false"),
    ],
)
def test_processors_that_are_refused(options, expected):
    with pytest.raises(VlmcError, match=expected):
        spec_of(options)


def test_patches_are_of_the_size_the_model_takes():
    with pytest.raises(VlmcError, match="192 numbers, the model takes 2700"):
        patch_rows_spec({"image_processor_type": "FuyuImageProcessor", **SIZE}, 2700)
