import warnings

import numpy as np
import pytest
from PIL import Image

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.image_processors import fixed_spec
from vlmc.runtime.images import image_tokens, open_image, prepare, vision_inputs

SHAPES = [
    (336, 336), (400, 300), (300, 401), (223, 225), (224, 224), (1, 1), (1, 300), (300, 1),
    (2, 3), (17, 640), (641, 7), (1023, 767), (225, 100), (30, 31),
]  # fmt: skip
PROCESSORS = {
    "clip": ("CLIPImageProcessor", {}),
    "clip-336": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "clip-odd-crop": ("CLIPImageProcessor", {"size": 97, "crop_size": [101, 58]}),
    "clip-crop-only": ("CLIPImageProcessor", {"do_resize": False, "crop_size": 225}),
    "clip-edges": ("CLIPImageProcessor", {"size": {"shortest_edge": 90, "longest_edge": 130}}),
    "clip-within": ("CLIPImageProcessor", {"size": {"max_height": 250, "max_width": 120}}),
    "clip-levels": ("CLIPImageProcessor", {"do_rescale": False}),
    "clip-raw": ("CLIPImageProcessor", {"do_rescale": False, "do_normalize": False}),
    "clip-rescaled": ("CLIPImageProcessor", {"do_normalize": False, "rescale_factor": 1 / 127.5}),
    "clip-opaque": ("CLIPImageProcessor", {"do_convert_rgb": False}),
    "clip-padded": (
        "CLIPImageProcessor",
        {
            "do_center_crop": False,
            "do_pad": True,
            "size": {"max_height": 60, "max_width": 80},
            "pad_size": {"height": 61, "width": 84},
        },
    ),
    "clip-pad-nothing": ("CLIPImageProcessor", {"do_pad": True}),
    "siglip": ("SiglipImageProcessor", {}),
    "siglip-wide": ("SiglipImageProcessor", {"size": {"height": 96, "width": 130}, "resample": 0}),
    "llava": ("LlavaImageProcessor", {}),
    "llava-square": ("LlavaImageProcessor", {"do_pad": True}),
    "llava-square-only": (
        "LlavaImageProcessor",
        {"do_pad": True, "do_center_crop": False, "size": {"shortest_edge": 99}, "resample": 1},
    ),
    "llava-square-edges": (
        "LlavaImageProcessor",
        {
            "do_pad": True,
            "do_center_crop": False,
            "size": {"shortest_edge": 99, "longest_edge": 60},
        },
    ),
    "llava-square-within": (
        "LlavaImageProcessor",
        {"do_pad": True, "size": {"max_height": 49, "max_width": 99}},
    ),
    "vit": ("ViTImageProcessor", {}),
    "janus": ("JanusImageProcessor", {"size": {"height": 96, "width": 96}}),
    "janus-thick": ("JanusImageProcessor", {"size": 40, "min_size": 33, "resample": 2}),
    "janus-least": ("JanusImageProcessor", {"size": 40, "min_size": 47, "image_mean": [0.1] * 3}),
    "deepseek-vl": ("DeepseekVLImageProcessor", {"image_mean": [0.5, 0.25, 1.0]}),
    "vit-int": ("ViTImageProcessor", {"size": 50, "resample": 4}),
}


def oracle(name, options):
    import transformers

    return getattr(transformers, f"{name}Pil")(**options)


def expected(name, options, picture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return oracle(name, options)(picture, return_tensors="np")["pixel_values"]


def spec_of(name, options) -> ImageSpec:
    return fixed_spec({"image_processor_type": name, **options}, 7)


@pytest.mark.parametrize("case", PROCESSORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pixels_equal_transformers_bit_for_bit(case, shape, draw):
    name, options = PROCESSORS[case]
    spec = spec_of(name, options)
    picture = draw(*shape)
    try:
        count = image_tokens(shape[1], shape[0], spec)
    except VlmcError:
        # Keeping its shape, so narrow a picture would have no rows or no columns left.
        assert case in ("clip-edges", "clip-within", "clip-padded")
        with pytest.raises(VlmcError, match="nothing of it would be left"):
            prepare(picture, spec)
        with pytest.raises(ValueError, match="must be > 0"):
            expected(name, options, picture)
        return
    prepared = prepare(picture, spec)
    ours, theirs = prepared.tensors["pixel_values"], expected(name, options, picture)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs.astype(np.float32))
    # Only a processor that neither rescales nor normalizes leaves levels as they are.
    assert theirs.dtype == (np.uint8 if case == "clip-raw" else np.float32)
    assert vision_inputs(spec)[0].shape == ours.shape
    assert prepared.tokens == count == 7
    assert prepared.grid == (1, 1, 7)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "1", "P", "PA", "CMYK", "I;16", "F", "YCbCr"])
@pytest.mark.parametrize("case", ["clip", "llava-square", "siglip"])
def test_pictures_that_were_not_opened_here(mode, case, draw):
    name, options = PROCESSORS[case]
    picture = draw(45, 60, mode)
    ours = prepare(picture, spec_of(name, options)).tensors["pixel_values"]
    assert np.array_equal(ours, expected(name, options, picture))


@pytest.mark.parametrize("case", ["clip", "clip-opaque"])
@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("RGB", (40, 40, 40)), ("L", 40), ("P", 3), ("1", 0), ("1", 255), ("I;16", 0)],
)
def test_a_transparent_color_of_a_file(case, mode, transparency, draw, save):
    name, options = PROCESSORS[case]
    picture = draw(45, 60, mode)
    if mode == "RGB":
        picture.paste(transparency, (5, 5, 30, 30))
    path = save(picture, "transparent.png", transparency=transparency)
    ours = prepare(open_image(path, at="x"), spec_of(name, options)).tensors["pixel_values"]
    assert np.array_equal(ours, expected(name, options, str(path)))


@pytest.mark.parametrize("case", ["clip", "llava", "llava-square"])
@pytest.mark.parametrize("shape", [(10000, 1), (1, 10000)])
def test_a_picture_that_would_explode_is_refused(case, shape):
    spec = spec_of(*PROCESSORS[case])
    with pytest.raises(VlmcError, match=r"10000.*limit is \d+ pixels") as caught:
        prepare(Image.new("RGB", shape), spec)
    with pytest.raises(VlmcError) as again:
        image_tokens(shape[1], shape[0], spec)
    assert str(again.value) == str(caught.value)


def test_a_picture_of_which_nothing_would_be_left_is_refused(draw):
    spec = spec_of("CLIPImageProcessor", {"size": {"max_height": 10, "max_width": 10}})
    with pytest.raises(VlmcError, match=r"1 x 300 pixels is too narrow.*0 x 10"):
        prepare(draw(1, 300), spec)


def test_a_picture_larger_than_its_padding_is_refused(draw):
    options = {"do_resize": False, "do_center_crop": False, "do_pad": True, "pad_size": 40}
    spec = spec_of("CLIPImageProcessor", options)
    assert prepare(draw(40, 39), spec).tensors["pixel_values"].shape == (1, 3, 40, 40)
    with pytest.raises(VlmcError, match="limit is 40 x 40"):
        prepare(draw(41, 39), spec)


def test_the_picture_itself_is_not_changed(draw):
    picture = draw(50, 40)
    for case in PROCESSORS:
        prepare(picture, spec_of(*PROCESSORS[case]))
    assert np.array_equal(np.asarray(picture), np.asarray(draw(50, 40)))
