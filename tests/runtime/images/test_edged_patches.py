import numpy as np
import pytest

from vlmc.bundle.manifest import ImageSpec
from vlmc.errors import VlmcError
from vlmc.families.grid_processors import whole_patches_spec
from vlmc.runtime.images import image_tokens, prepare, vision_inputs
from vlmc.runtime.images.edged_patches import merged

SHAPES = [(30, 90), (90, 31), (28, 28), (7, 9), (200, 20), (64, 64), (97, 31), (57, 83), (400, 391)]


def spec_of(unit, patch, merge, **settings):
    given = {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 60}}
    options = whole_patches_spec(given | settings, unit, 1).options
    whole = {"picture": options, "patch_size": patch, "merge_size": merge}
    return ImageSpec(geometry="edged_patches", options=whole)


@pytest.mark.parametrize(("unit", "patch", "merge"), [(3, 3, 2), (6, 3, 2), (5, 3, 2), (4, 2, 3)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_patches_equal_transformers_bit_for_bit(unit, patch, merge, shape, draw):
    import transformers as hf

    spec, picture = spec_of(unit, patch, merge), draw(*shape)
    processor = hf.PixtralImageProcessorPil(
        size={"longest_edge": 60}, patch_size={"height": unit, "width": unit}
    )
    made = processor(picture)
    theirs = np.asarray(made["pixel_values"][0])
    height, width = made["image_sizes"][0]
    rows, columns = height // patch, width // patch
    ours = prepare(picture, spec)
    assert [one.name for one in vision_inputs(spec)] == list(ours.tensors)
    patches = ours.tensors["pixel_values"].reshape(rows, columns, 3, patch, patch)
    joined = patches.transpose(2, 0, 3, 1, 4).reshape(3, rows * patch, columns * patch)
    assert np.array_equal(joined, theirs[:, : rows * patch, : columns * patch])
    factor = patch * merge
    wanted = (height // factor) * (width // factor)
    assert ours.tokens == image_tokens(shape[1], shape[0], spec) == wanted


def test_a_feature_joins_a_square_and_edges_are_left():
    assert merged(3, 5, 2).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]
    assert merged(2, 2, 1).tolist() == [[0], [1], [2], [3]]


def test_a_picture_without_a_feature_is_refused(draw):
    with pytest.raises(VlmcError, match="too narrow"):
        prepare(draw(90, 2), spec_of(3, 3, 2))
