"""What is read of a Video-LLaMA 3 checkpoint, and how its merged patches are read."""

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images.native_grid import center_patches
from vlmc.schema import Json

FAMILY = FAMILIES["video-llama-3"]


def facts(text: Json | None = None, *, merge: int | None = None, **tower: object) -> ModelFacts:
    images: Json = {"image_processor_type": "VideoLlama3ImageProcessorFast", "patch_size": 16}
    if merge is not None:
        images["merge_size"] = merge
    config: Json = {"vision_config": tower, "text_config": text}
    return FAMILY.facts(Checkpoint(config, {}, images, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import VideoLlama3Config

    made, found = VideoLlama3Config(), facts()
    assert found.image_token_id == made.image_token_id
    assert found.text.hidden == made.text_config.hidden_size
    assert found.positions.scheme == "sequential"
    assert found.images.options["patch_size"] == made.vision_config.patch_size
    assert found.image_tokens(160, 320) == 200
    assert found.multiples == {"patches": 1}


def test_the_image_processor_says_how_patches_are_merged() -> None:
    found = facts(merge=2)
    assert found.image_tokens(160, 320) == 50
    assert found.multiples == {"patches": 4}
    assert found.vision_inputs[-1].shape == ("image_tokens", 4)
    with pytest.raises(VlmcError, match="tower's patch_size is 14, the image processor's"):
        facts(patch_size=14)


@pytest.mark.parametrize("merge", [1, 2, 3, 4, 5])
def test_a_merged_patch_is_read_where_transformers_reads_it(merge: int) -> None:
    import torch

    rows, columns = 2 * merge, 3 * merge
    grid = torch.randn(rows, columns)
    size = (rows // merge, columns // merge)
    expected = torch.nn.functional.interpolate(grid[None, None], size=size, mode="bilinear")
    blocks = grid.reshape(size[0], merge, size[1], merge).transpose(1, 2).flatten().numpy()
    found = blocks[center_patches(size[0] * size[1], merge)].mean(1)
    assert np.allclose(found, expected.flatten().numpy(), atol=1e-6)
