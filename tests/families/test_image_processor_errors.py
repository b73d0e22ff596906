import pytest

from vlmc.errors import VlmcError
from vlmc.families.grid_processors import native_grid_spec
from vlmc.families.image_processors import fixed_spec
from vlmc.families.tiles_processors import tiles_spec


def read(settings, **options):
    if "Qwen2VL" in str(settings):
        return native_grid_spec(settings, **options)
    if "GotOcr2" in str(settings):
        return tiles_spec(settings, 3, **options)
    return fixed_spec(settings, 3, **options)


def refusal(settings, **options):
    with pytest.raises(VlmcError) as caught:
        read(settings, at="p.json", **options)
    return str(caught.value)


def test_an_unknown_class_is_refused_with_the_known_ones():
    text = refusal({"image_processor_type": "SiglipImageProcesor"})
    assert "p.json: image_processor_type: unknown image processor 'SiglipImageProcesor'" in text
    assert "allowed: BlipImageProcessor, CLIPImageProcessor, " in text
    assert "did you mean 'SiglipImageProcessor'" in text
    with pytest.raises(VlmcError, match="Qwen2VLImageProcessor"):
        native_grid_spec({"image_processor_type": "CLIPImageProcessor"})
    for absent in ({}, {"image_processor_type": 3}, {"feature_extractor_type": None}):
        assert "class of the image processor is not named" in refusal(absent)


WRONG = {
    "size": [
        True, 0, -3, 2.5, "224", [], [1], [1, 2, 3], {}, {"height": 3}, {"longest_edge": 3},
        {"height": 224, "width": 0}, {"height": 224, "width": "2"},
        {"min_pixels": 1, "max_pixels": 2},
        {"height": 224, "width": 224, "shortest_edge": 224},
    ],
    "crop_size": [0, {}, {"shortest_edge": 224}, {"height": None, "width": 3}],
    "resample": [-1, 6, "bicubic", 2.0, True, []],
    "rescale_factor": ["1/255", True, [], 1e300, float("inf"), float("nan")],
    "image_mean": ["x", [0.5], [0.5, 0.5], [1, 2, "3"], [0, 0, float("nan")]],
    "image_std": [0, [0, 1, 1], [1, 1], {}],
    "do_resize": [1, "true", []],
    "do_normalize": ["no"],
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_one_clear_error(key):
    for value in WRONG[key]:
        text = refusal({"image_processor_type": "CLIPImageProcessor", key: value})
        assert text.startswith("p.json"), value
        assert key in text or key in ("rescale_factor", "image_mean", "image_std"), value


def test_pictures_of_varying_size_are_refused():
    settings = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}
    assert "different sizes" in refusal(settings)
    assert "different sizes" in refusal(settings | {"do_resize": False})


def test_the_size_of_the_tower_is_checked():
    settings = {"image_processor_type": "CLIPImageProcessor"}
    assert fixed_spec(settings, 3, image_size=224).options["crop"] == {"height": 224, "width": 224}
    text = refusal(settings, image_size=336)
    assert "pictures of 224 x 224 pixels, the vision tower takes 336 x 336" in text


def test_a_mean_that_is_no_color_cannot_pad():
    settings = {"image_processor_type": "LlavaImageProcessor", "image_mean": [0, 0.5, 1.5]}
    assert read(settings).options["square"] is None
    assert "no" in refusal(settings | {"do_pad": True})
    assert "image_mean" in refusal(settings | {"do_pad": True})
    assert "image_mean" in refusal(settings | {"do_pad": True, "image_mean": [0, 0, 1e308]})


def test_the_recipe_bounds_override_the_processor():
    settings = {"image_processor_type": "Qwen2VLImageProcessor"}
    bounds = [3136, 28 * 28 * 1280]
    for given, expected in (
        ({}, bounds),
        ({"min_pixels": 50_000}, [50_000, bounds[1]]),
        ({"max_pixels": 50_000}, [bounds[0], 50_000]),
        ({"min_pixels": 1, "max_pixels": 1}, [1, 1]),
    ):
        options = native_grid_spec(settings, **given).options
        assert [options["min_pixels"], options["max_pixels"]] == expected


def test_bounds_that_exclude_each_other():
    settings = {"image_processor_type": "Qwen2VLImageProcessor"}
    text = refusal(settings, max_pixels=100)
    assert text.startswith("images: ")
    assert "3136" in text
    assert "images.min-pixels" in text
    assert refusal(settings | {"min_pixels": 9, "max_pixels": 8}).startswith("p.json: ")
    assert "0 is not a positive" in refusal(settings, min_pixels=0)


QWEN_WRONG = {
    "size": [3136, {}, {"shortest_edge": 3136}, {"height": 2, "width": 2}],
    "min_pixels": [0, -1, 2.5, True, "3136"],
    "max_pixels": [0],
    "patch_size": [0, 14.0, "14"],
    "merge_size": [0],
    "temporal_patch_size": [0],
}


@pytest.mark.parametrize("key", QWEN_WRONG)
def test_a_wrong_native_grid_is_one_clear_error(key):
    for value in QWEN_WRONG[key]:
        text = refusal({"image_processor_type": "Qwen2VLImageProcessor", key: value})
        assert text.startswith("p.json"), value


TILES_WRONG = {
    "size": [True, 0, "384", {}, {"shortest_edge": 384}, {"height": 384, "width": 0}],
    "min_patches": [0, -1, 2.5, "1", 13],
    "max_patches": [0, 257, 10**30, True, "12", float("nan")],
    "resample": [7],
    "do_resize": ["no"],
}


@pytest.mark.parametrize("key", TILES_WRONG)
def test_wrong_tiles_are_one_clear_error(key):
    for value in TILES_WRONG[key]:
        settings = {"image_processor_type": "GotOcr2ImageProcessor", "max_patches": 1}
        settings = settings if key == "do_resize" else settings | {"max_patches": 12}
        assert refusal(settings | {key: value}).startswith("p.json"), value


def test_a_bound_of_the_recipe_below_the_fewest_tiles():
    settings = {"image_processor_type": "GotOcr2ImageProcessor", "min_patches": 4}
    text = refusal(settings, max_tiles=3)
    assert text.startswith("images.max-tiles: ")
    assert "min_tiles (4) is larger than max_tiles (3)" in text


def test_one_tile_of_any_size_is_refused():
    settings = {"image_processor_type": "GotOcr2ImageProcessor", "do_resize": False}
    assert read(settings).options["max_tiles"] == 12
    assert "do_resize: pictures of one tile would keep" in refusal(settings, max_tiles=1)
