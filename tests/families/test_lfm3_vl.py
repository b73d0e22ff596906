"""What is read of an LFM3-VL checkpoint, against transformers' own."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

FAMILY = FAMILIES["lfm3-vl"]
IMAGES: Json = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16}


def facts(text: Json | None = None, **tower: object) -> ModelFacts:
    config: Json = {"vision_config": tower, "text_config": text}
    return FAMILY.facts(Checkpoint(config, {}, IMAGES, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import torch
    from transformers import Lfm3VlConfig, Lfm3VlForConditionalGeneration

    made, found = Lfm3VlConfig(), facts()
    assert found.image_token_id == made.image_token_id
    kinds = made.text_config.layer_types
    assert [state.layer for state in found.states] == [
        layer for layer, kind in enumerate(kinds) if kind == "conv"
    ]
    assert {state.shape for state in found.states} == {(2048, made.text_config.conv_L_cache - 1)}
    with torch.device("meta"):
        model = Lfm3VlForConditionalGeneration(made)
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())  # noqa: E731
    assert found.weights is not None
    tower = count(model.model.vision_tower, model.model.multi_modal_projector)
    assert found.weights.vision == pytest.approx(tower, rel=0.01)
    language = count(model.model.language_model.layers)
    assert found.weights.language == pytest.approx(language, rel=0.01)
    assert found.weights.head == 0


@pytest.mark.parametrize(
    ("text", "tower", "message"),
    [
        ({"layer_types": ["conv", "mamba"], "num_hidden_layers": 2}, {}, "is 'mamba'"),
        ({"layer_types": ["conv"], "num_hidden_layers": 2}, {}, "the kind of 2 layers"),
        ({"model_type": "qwen3"}, {}, "'model_type' is 'qwen3'"),
        ({}, {"conv_kernel_size": 4}, "convolution of 4 patches has no middle"),
        ({}, {"num_key_value_heads": 3}, "16 attention heads cannot share 3"),
        ({}, {"patch_size": 14}, "tower's patch_size is 14, the image processor's"),
    ],
)
def test_what_cannot_be_served_is_refused(text: Json, tower: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message):
        facts(text, **tower)


def test_the_convolutions_see_the_grid() -> None:
    import numpy as np
    from PIL import Image

    from vlmc.runtime.images import prepare

    made = prepare(Image.new("RGB", (96, 160)), facts().images)
    places, grid = made.tensors["patch_positions"], made.tensors["grid_patches"]
    assert grid.shape == tuple(places.max(0) + 1)
    assert np.array_equal(grid[places[:, 0], places[:, 1]], np.arange(len(places)))
