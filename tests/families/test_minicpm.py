"""What is read of a MiniCPM-V checkpoint, against transformers' own."""

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

IMAGES: Json = {"image_processor_type": "MiniCPMV4_6ImageProcessorPil", "patch_size": 16}


def facts(
    config: Json | None = None,
    images: Json | None = None,
    processor: Json | None = None,
    family: str = "minicpm-v4.6",
) -> ModelFacts:
    config = {"image_token_id": 7, **(config or {})}
    given = Checkpoint(config, processor or {}, {**IMAGES, **(images or {})}, {}, {})
    return FAMILIES[family].facts(given)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import torch
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

    made, found = MiniCPMV4_6Config(), facts()
    kinds = made.text_config.layer_types
    linear = [layer for layer, kind in enumerate(kinds) if kind == "linear_attention"]
    assert sorted({state.layer for state in found.states}) == linear
    with torch.device("meta"):
        model = MiniCPMV4_6ForConditionalGeneration(made)
    count = lambda *parts: sum(p.numel() for part in parts for p in part.parameters())  # noqa: E731
    assert found.weights is not None
    tower = count(model.model.vision_tower, model.model.merger)
    assert found.weights.vision == pytest.approx(tower, rel=0.01)
    language = count(model.model.language_model.layers)
    assert found.weights.language == pytest.approx(language, rel=0.01)
    assert found.weights.head == count(model.lm_head)


def test_another_decoder_has_no_states() -> None:
    found = facts({"text_config": {"model_type": "qwen3", "num_hidden_layers": 3}})
    assert (found.text.layers, found.states) == (3, ())


@pytest.mark.parametrize(
    ("processor", "images", "numbered"),
    [
        ({}, {}, True),
        ({}, {"use_image_id": False}, False),
        ({}, {"use_image_id": None}, True),
        # The processor's class takes no such setting.
        ({"use_image_id": True}, {"use_image_id": False}, False),
        ({"use_image_id": False}, {}, True),
    ],
)
def test_pictures_are_numbered_where_the_processor_says_so(
    processor: Json, images: Json, numbered: bool
) -> None:
    found = facts(None, images, processor)
    assert found.image_layout is not None
    assert bool(found.image_layout.numbered) == numbered
    # A picture's own tokens, two marks, and its number between two more.
    assert found.image_tokens(448, 448) == 49 + 2 + 3 * numbered
    # Two rows of two slices: as many more, with their marks, and a line's end.
    assert found.image_tokens(896, 896) == 5 * (49 + 2) + 1 + 3 * numbered


@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        ({"image_token_id": None}, {}, "'image_token_id' is missing"),
        ({"downsample_mode": "4x"}, {}, "a token for 4 patches along each side"),
        ({}, {"downsample_mode": "4x"}, "a token for 2 patches along each side"),
        ({"merge_kernel_size": [1, 4]}, {}, r"\[1, 4\] is not \[2, 2\]"),
        ({"vision_config": {"window_kernel_size": [4, 1]}}, {}, r"\[4, 1\] is not \[2, 2\]"),
        ({}, {"use_image_id": "no"}, "'no' is neither true nor false"),
        ({"merger_times": 2}, {}, "tokens of one merger"),
        ({"insert_layer_id": -1}, {}, "none is number -1"),
        ({"vision_config": {"num_hidden_layers": 6}}, {}, "the tower has 6 layers"),
        ({"vision_config": {"patch_size": 14}}, {}, "patches have 16 pixels, the tower's 14"),
    ],
)
def test_what_cannot_be_served_is_refused(config: Json, images: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message):
        facts(config, images)


def test_a_tower_that_does_not_merge_may_have_few_layers() -> None:
    config: Json = {"downsample_mode": "4x", "vision_config": {"num_hidden_layers": 2}}
    assert facts(config, {"downsample_mode": "4x"}).multiples["patches"] == 4


@pytest.mark.parametrize("drawn", [(40, 200), (200, 330)])
def test_slices_do_not_see_each_other(drawn: tuple[int, int]) -> None:
    import numpy as np
    import torch
    import transformers as hf
    from PIL import Image

    from vlmc.runtime.images import prepare

    images: Json = {"patch_size": 7, "scale_resolution": 112, "max_slice_nums": 3}
    tower: Json = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 70,
        "patch_size": 7,
    }
    text: Json = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    config = hf.MiniCPMV4_6Config(
        vision_config=tower, text_config=text, image_token_id=7, insert_layer_id=1
    )
    torch.manual_seed(0)
    model = hf.MiniCPMV4_6ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*drawn, 3), dtype=np.uint8))
    processed = hf.MiniCPMV4_6ImageProcessorPil(**images)([picture], return_tensors="pt")
    with torch.no_grad():
        made = model.model.get_image_features(
            processed["pixel_values"].float(), processed["target_sizes"], return_dict=True
        )
        wanted = torch.cat(list(made.pooler_output)).numpy()
        spec = facts(config.to_dict(), images).images
        given = prepare(picture, spec).tensors.values()
        found = FAMILIES["minicpm-v4.6"].vision(model)(*map(torch.from_numpy, given)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.ptp(wanted))


def test_marks_have_places_where_the_configuration_knows_them() -> None:
    found = facts({"image_start_id": 3, "newline_id": 0}, family="minicpm-v4.7").positions
    assert found.scheme == "canvas"
    assert found.options == {
        "image_start": 3,
        "image_end": None,
        "slice_start": None,
        "slice_end": None,
        "newline": 0,
    }
    with pytest.raises(VlmcError, match="'llama' takes no positions on three axes"):
        facts({"text_config": {"model_type": "llama"}}, family="minicpm-v4.7")
    with pytest.raises(VlmcError, match="'slice_end_id' is '</slice>'"):
        facts({"slice_end_id": "</slice>"}, family="minicpm-v4.7")
