import json
import math
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import ANYRES_CLASSES
from vlmc.families.grid_processors import NATIVE_GRID_CLASSES, native_grid_spec
from vlmc.families.image_processors import (
    FIXED_CLASSES,
    fixed_spec,
)
from vlmc.families.quarters_processor import QUARTERS_CLASSES
from vlmc.families.split_processors import SPLIT_CLASSES, split_spec
from vlmc.families.tiles_processors import DOCLING_CLASSES, OVIS_CLASSES, TILES_CLASSES
from vlmc.runtime.images import prepare, vision_inputs
from vlmc.runtime.images.patches import positions

CLASSES = {**FIXED_CLASSES, **NATIVE_GRID_CLASSES, **SPLIT_CLASSES}


def oracle(name):
    import transformers

    own = name == "VideoLlavaImageProcessor"
    return video_llava() if own else getattr(transformers, f"{name}Pil")


def video_llava():
    """Video-LLaVA's has no class attributes, and calls pixels by a name of its own."""
    from transformers import VideoLlavaImageProcessor

    class VideoLlavaImageProcessorPil(VideoLlavaImageProcessor):
        def __call__(self, *given, **settings):
            # By itself it takes a picture that is one or three pixels high for channels.
            made = super().__call__(*given, input_data_format="channels_last", **settings)
            return {"pixel_values": made["pixel_values_images"]}

    for key, value in vars(VideoLlavaImageProcessor()).items():
        setattr(VideoLlavaImageProcessorPil, key, value)
    VideoLlavaImageProcessorPil.default_to_square = False  # it asks for that at every call
    return VideoLlavaImageProcessorPil


def read(settings, **options):
    if any(name in json.dumps(settings) for name in NATIVE_GRID_CLASSES):
        return native_grid_spec(settings, **options)
    if settings.get("image_processor_type", "").startswith(tuple(SPLIT_CLASSES)):
        return split_spec(settings, 5, image_size=364, **options)
    return fixed_spec(settings, 3, **options)


def in_blocks(name, values, ours):
    """Some processors' patches lie row by row; here all processors' lie in merged blocks."""
    if name == "HunYuanVLImageProcessor":
        _, rows, columns = ours.grid
        merge = math.isqrt(len(values) // (rows * columns))
        places = positions(rows * merge, columns * merge, merge)
    elif name == "PaddleOCRVLImageProcessor":
        places = ours.tensors["patch_positions"]
    else:
        return values
    columns = places[:, 1].max() + 1
    return values[places[:, 0] * columns + places[:, 1]].reshape(len(values), -1)


def noise(rng):
    size = rng.randint(1, 90), rng.randint(1, 90)
    mode = rng.choice(["RGB", "RGBA", "L"])
    return Image.frombytes(mode, size, rng.randbytes(size[0] * size[1] * len(mode)))


def saved(processor, folder):
    """The JSON of a processor, and the processor that JSON makes."""
    processor.save_pretrained(folder)
    loaded = type(processor).from_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text()), loaded


TILED = {**TILES_CLASSES, **OVIS_CLASSES, **DOCLING_CLASSES}
OTHERS = {**TILED, **ANYRES_CLASSES, **QUARTERS_CLASSES}


@pytest.mark.parametrize("name", [*CLASSES, *OTHERS])
def test_defaults_are_the_class_attributes(name):
    known = {**CLASSES, **OTHERS}[name]
    for key, value in known.items():
        theirs = getattr(oracle(name), key, None)
        assert (False if theirs is None else theirs) == value, key
    ours = set(known)
    for key in ("do_center_crop", "crop_size", "do_pad", "pad_size", "do_convert_rgb"):
        assert key in ours or not getattr(oracle(name), key, None), key


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_a_bare_class_name_has_its_defaults(name, suffix):
    picture = noise(random.Random(1))
    picture = picture.convert("RGB")
    spec = read({"image_processor_type": name + suffix, "size": None, "resample": None})
    theirs = oracle(name)()(picture, return_tensors="np")["pixel_values"]
    theirs = theirs[0] if name in SPLIT_CLASSES else theirs
    ours = prepare(picture, spec)
    assert np.array_equal(ours.tensors["pixel_values"], in_blocks(name, theirs, ours))


def random_fixed(rng, name):
    side = lambda: rng.randint(1, 70)  # noqa: E731
    settings = {}
    for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_pad"):
        if rng.random() < 0.4:
            settings[key] = rng.random() < 0.6
    if rng.random() < 0.8:
        settings["size"] = rng.choice(
            [
                side(),
                [side(), side()],
                {"height": side(), "width": side()},
                {"shortest_edge": side()},
                {"shortest_edge": side(), "longest_edge": side()},
                {"max_height": side(), "max_width": side()},
            ]
        )
    if rng.random() < 0.8 or "crop_size" not in FIXED_CLASSES[name]:  # it is asked for all the same
        settings["crop_size"] = rng.choice(
            [side(), [side(), side()], {"height": side(), "width": side()}]
        )
    if "min_size" in FIXED_CLASSES[name]:
        settings["min_size"] = rng.choice([1, 5])
    if rng.random() < 0.2:
        settings["pad_size"] = rng.choice([70, {"height": 70, "width": 75}])
    if rng.random() < 0.5:
        settings["resample"] = rng.randrange(6)
    if rng.random() < 0.3:
        settings["rescale_factor"] = rng.choice([1 / 255, 1 / 127.5, 1 / 256, 2])
    settings |= random_colors(rng)
    return settings


def random_colors(rng):
    settings = {}
    if rng.random() < 0.5:
        settings["image_mean"] = [round(rng.random(), 4) for _ in range(3)]
    if rng.random() < 0.3:
        settings["image_std"] = [round(rng.uniform(0.1, 1), 4) for _ in range(3)]
    elif rng.random() < 0.1:
        settings["image_std"] = 0.25
    if rng.random() < 0.2:
        settings["do_convert_rgb"] = True
    return settings


@pytest.mark.parametrize("name", FIXED_CLASSES)
def test_random_processors_as_saved_by_transformers(name, tmp_path):
    rng = random.Random(name)
    compared = 0
    for _ in range(150):
        settings, processor = saved(oracle(name)(**random_fixed(rng, name)), tmp_path)
        picture = noise(rng)
        if not processor.do_convert_rgb:
            picture = picture.convert("RGB")
        refusal = ""
        try:
            spec = read(settings)
            ours = prepare(picture, spec).tensors["pixel_values"]
        except VlmcError as error:
            refusal = str(error)
        if refusal:
            assert refused_rightly(refusal, processor, picture), (settings, refusal)
            continue
        theirs = processor(picture, return_tensors="np")["pixel_values"]
        assert np.array_equal(ours, theirs.astype(np.float32)), settings
        assert vision_inputs(spec)[0].shape == ours.shape
        compared += 1
    assert compared > 30


def refused_rightly(text, processor, picture):
    """Whether transformers fails too, or makes pictures of different sizes."""
    sizes = set()
    for width, height in (picture.size, (40, 40), (2, 30), (30, 2), (90, 90), (37, 64)):
        try:
            made = processor(picture.resize((width, height)), return_tensors="np")
        except ValueError:
            return True
        sizes.add(made["pixel_values"].shape)
    return "different sizes" in text and len(sizes) > 1


@pytest.mark.parametrize("name", NATIVE_GRID_CLASSES)
def test_random_native_grids_as_saved_by_transformers(tmp_path, name):
    rng = random.Random(0)
    for _ in range(80):
        settings = random_colors(rng)
        for key, values in (
            ("patch_size", (4, 7, 14, 16)),
            ("merge_size", (1, 2, 3)),
            ("temporal_patch_size", (1, 2, 3)),
            ("resample", range(6)),
            ("do_rescale", (True, False)),
            ("do_normalize", (True, False)),
        ):
            if rng.random() < 0.4:
                settings[key] = rng.choice(values)
        least, most = sorted((rng.randint(1, 30_000), rng.randint(1, 30_000)))
        told = name in ("Qwen2VLImageProcessor", "HunYuanVLImageProcessor")
        kind = rng.randrange(4) if told else rng.choice([0, 3])
        if kind == 0:
            settings["size"] = {"shortest_edge": least, "longest_edge": most}
        elif kind == 1:
            settings |= {"min_pixels": least, "max_pixels": most}
        elif kind == 2:
            settings |= {"min_pixels": 3136, "max_pixels": most + 3136}
            settings["size"] = {"min_pixels": least, "max_pixels": most}
        written, processor = saved(oracle(name)(**settings), tmp_path)
        picture = noise(rng)
        theirs = processor(picture, return_tensors="np")
        for form in (written, {"image_processor_type": name, **settings}):
            ours = prepare(picture, read(form))
            values = in_blocks(name, theirs["pixel_values"], ours)
            assert np.array_equal(ours.tensors["pixel_values"], values), settings


OLD = {
    "clip": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
    "square": {"image_processor_type": "CLIPImageProcessor", "use_square_size": True},
    "vit": {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2},
    "fast": {
        "image_processor_type": "LlavaImageProcessorFast",
        "crop_size": {"height": 336, "width": 336},
        "size": {"shortest_edge": 336},
        "data_format": "channels_first",
        "device": None,
        "disable_grouping": None,
        "do_pad": None,
        "processor_class": "LlavaProcessor",
        "return_tensors": None,
    },
    "qwen": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "processor_class": "Qwen2VLProcessor",
    },
}


@pytest.mark.parametrize("case", OLD)
def test_files_as_found_on_the_hub(case, tmp_path, draw_noise):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD[case]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = processor(draw_noise, return_tensors="np")["pixel_values"]
    assert np.array_equal(prepare(draw_noise, read(OLD[case])).tensors["pixel_values"], theirs)


@pytest.fixture
def draw_noise():
    return noise(random.Random(5)).resize((300, 200)).convert("RGB")
