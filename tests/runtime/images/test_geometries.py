"""What holds for every row of ``GEOMETRIES``."""

import json

import numpy as np
import pytest

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.anyres_processors import ANYRES_CLASSES, anyres_spec
from vlmc.families.canvas_processor import canvas_spec
from vlmc.families.grid_processors import naflex_spec, native_grid_spec, whole_patches_spec
from vlmc.families.hd_crops_processor import hd_crops_spec
from vlmc.families.image_processors import fixed_spec
from vlmc.families.overlap_processor import overlap_spec
from vlmc.families.padded_grid_processor import padded_grid_spec
from vlmc.families.pan_and_scan_processor import pan_and_scan_spec
from vlmc.families.patch_rows_processor import patch_rows_spec
from vlmc.families.quarters_processor import quarters_spec
from vlmc.families.slices_processor import slices_spec
from vlmc.families.split_processors import split_spec
from vlmc.families.tiles_processors import tiles_spec
from vlmc.families.token_budget_processor import token_budget_spec
from vlmc.families.two_sizes_processor import two_sizes_spec
from vlmc.families.whole_then_tiles_processor import whole_then_tiles_spec
from vlmc.runtime.images import GEOMETRIES, image_tokens, prepare, vision_inputs

TILED = {"image_processor_type": "LlavaNextImageProcessor"} | {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
}
PINPOINTS = ANYRES_CLASSES["LlavaNextImageProcessor"]["image_grid_pinpoints"]
SPECS = {
    "anyres": anyres_spec(TILED, side=336, rows=24, pinpoints=PINPOINTS),
    "canvas": canvas_spec(
        {
            "image_processor_type": "Llama4ImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        5,
        image_size=336,
    ),
    "fixed": fixed_spec({"image_processor_type": "CLIPImageProcessor"}, 5),
    "naflex": naflex_spec(
        {
            "image_processor_type": "Lfm2VlImageProcessor",
            "tile_size": 64,
            "max_image_tokens": 99,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        16,
        2,
        4,
    ),
    "native_grid": native_grid_spec({"image_processor_type": "Qwen2VLImageProcessor"}),
    "pan_and_scan": pan_and_scan_spec(
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        5,
        image_size=224,
        max_tiles=3,
    ),
    "patch_rows": patch_rows_spec(
        {
            "image_processor_type": "FuyuImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        2700,
    ),
    "split": split_spec(
        {
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 112},
            "max_image_size": {"longest_edge": 56},
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        5,
        image_size=56,
    ),
    "padded_grid": padded_grid_spec(
        {
            "image_processor_type": "Kimi_K25ImageProcessor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        14,
        2,
        64,
    ),
    "whole_patches": whole_patches_spec({"image_processor_type": "PixtralImageProcessor"}, 16, 1),
    "token_budget": token_budget_spec(
        {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": 70}, 16, 3, 10240
    ),
    "edged_patches": ImageSpec(
        geometry="edged_patches",
        options={
            "picture": whole_patches_spec(
                {"image_processor_type": "PixtralImageProcessor"}, 28, 1
            ).options,
            "patch_size": 14,
            "merge_size": 2,
        },
    ),
    "quarters": quarters_spec(
        {"image_processor_type": "Idefics2ImageProcessor", "do_image_splitting": False},
        64,
        patch_size=14,
    ),
    "hd_crops": hd_crops_spec(
        {"image_processor_type": "Phi4MultimodalImageProcessor"}, image_size=448, patch_size=14
    ),
    "two_sizes": two_sizes_spec(
        {"image_processor_type": "DeepseekVLHybridImageProcessor"},
        576,
        image_size=384,
        high_res=1024,
    ),
    "overlap": overlap_spec(
        {"image_processor_type": "Molmo2ImageProcessor"}, image_size=378, patch=14
    ),
    "whole_then_tiles": whole_then_tiles_spec(
        {
            "image_processor_type": "PerceptionLMImageProcessor",
            "tile_size": 56,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        4,
        image_size=(56, 56),
    ),
    "slices": slices_spec(
        {
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "scale_resolution": 112,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        14,
        4,
    ),
    "tiles": tiles_spec({"image_processor_type": "GotOcr2ImageProcessor"}, 5),
}
# Geometries whose patches have their channels innermost.
INNERMOST = {"naflex", "patch_rows", "token_budget", "overlap"}
# What becomes of red 255, green 0, blue 128 where the means are not CLIP's.
COLORS = {key: [1, -1, 0.004] for key in ("quarters", "hd_crops", "overlap")}
COLORS |= {"token_budget": [1, 0, 0.502]}
rows = pytest.mark.parametrize("spec", [SPECS[name] for name in GEOMETRIES], ids=list(GEOMETRIES))


def refused(call, *arguments) -> str:
    with pytest.raises(VlmcError) as caught:
        call(*arguments)
    return str(caught.value)


@rows
def test_the_spec_survives_its_file(spec, draw):
    again = ImageSpec.model_validate(json.loads(spec.model_dump_json()))
    assert again == spec
    ours, same = prepare(draw(50, 40), spec), prepare(draw(50, 40), again)
    for name, tensor in ours.tensors.items():
        assert np.array_equal(tensor, same.tensors[name])


@rows
@pytest.mark.parametrize("shape", [(50, 40), (300, 120), (1, 7), (640, 480)])
def test_prepare_keeps_what_the_others_promise(spec, shape, draw):
    prepared = prepare(draw(*shape), spec)
    assert prepared.tokens == image_tokens(shape[1], shape[0], spec) == np.prod(prepared.grid)
    assert [promised.name for promised in vision_inputs(spec)] == list(prepared.tensors)
    free: dict[str, int] = {}
    for promised in vision_inputs(spec):
        tensor = prepared.tensors[promised.name]
        assert tensor.dtype == promised.dtype
        assert tensor.flags.c_contiguous
        assert tensor.ndim == len(promised.shape)
        for size, name in zip(tensor.shape, promised.shape, strict=True):
            assert size == (free.setdefault(name, size) if isinstance(name, str) else name)


@rows
def test_a_picture_does_not_depend_on_the_ones_before(spec, draw):
    first = prepare(draw(50, 40), spec)
    other = prepare(draw(50, 40, seed=1), spec).tensors["pixel_values"]
    assert not np.array_equal(first.tensors["pixel_values"], other)
    again = prepare(draw(50, 40), spec)
    assert np.array_equal(first.tensors["pixel_values"], again.tensors["pixel_values"])


@rows
def test_the_color_order_is_red_green_blue(spec):
    from PIL import Image

    pixel_values = prepare(Image.new("RGB", (56, 56), (255, 0, 128)), spec).tensors["pixel_values"]
    if pixel_values.ndim == 4:
        seen = pixel_values[0, :, 50, 50]
    else:  # rows of patches
        patch = pixel_values.reshape(-1, pixel_values.shape[-1])[0]
        seen = patch[:3] if spec.geometry in INNERMOST else patch.reshape(3, -1)[:, 0]
    # The canvas computes in eight significant bits.
    expected = COLORS.get(spec.geometry, [1.93, -1.75, 0.34])
    assert seen.tolist() == pytest.approx(expected, abs=0.02)


@rows
def test_sizes_without_pixels_are_refused(spec):
    assert "no pixels" in refused(image_tokens, 0, 5, spec)
    assert "no pixels" in refused(image_tokens, 5, -1, spec)


@rows
def test_unknown_and_missing_options_are_refused(spec):
    for options in (spec.options | {"extra": 1}, {}, spec.options | {"resample": "cubic"}):
        text = refused(vision_inputs, ImageSpec(geometry=spec.geometry, options=options))
        assert text.startswith("processor/images.json: ")
    assert "extra" in refused(
        vision_inputs, ImageSpec(geometry=spec.geometry, options=spec.options | {"extra": 1})
    )


def test_an_unknown_geometry_is_refused():
    text = refused(vision_inputs, ImageSpec(geometry="native-grid", options={}))
    assert "unknown image geometry 'native-grid'" in text
    assert "did you mean 'native_grid'" in text


def test_bounds_in_the_wrong_order_are_refused():
    options = SPECS["native_grid"].options | {"min_pixels": 10, "max_pixels": 9}
    text = refused(vision_inputs, ImageSpec(geometry="native_grid", options=options))
    assert "min_pixels (10) is larger than max_pixels (9)" in text


def test_tiles_in_the_wrong_order_are_refused():
    options = SPECS["tiles"].options | {"min_tiles": 3, "max_tiles": 2}
    text = refused(vision_inputs, ImageSpec(geometry="tiles", options=options))
    assert "min_tiles (3) is larger than max_tiles (2)" in text


def test_padding_smaller_than_the_crop_is_refused(draw):
    small = SPECS["fixed"].options | {"pad": {"height": 99, "width": 300}}
    spec = ImageSpec(geometry="fixed", options=small)
    assert "limit is 300 x 99" in refused(prepare, draw(50, 40), spec)
