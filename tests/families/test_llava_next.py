"""LLaVA-NeXT's facts and vision against transformers' own model."""

import json

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

PINPOINTS = [[28, 56], [56, 28], [56, 56]]
IMAGES: Json = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "image_grid_pinpoints": PINPOINTS,
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def config(tower: str = "clip", **changes: object) -> Json:
    vision: Json = {"model_type": f"{tower}_vision_model", "image_size": 28, "patch_size": 7}
    return {
        "model_type": "llava_next",
        "vision_config": vision | SIZES,
        "text_config": {"model_type": "llama", "vocab_size": 50, **SIZES},
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": 7,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
    } | changes


def facts(given: Json, images: Json = IMAGES) -> ModelFacts:
    return FAMILIES["llava-next"].facts(Checkpoint(given, {}, images, {}, {}))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-2, [-1, 0], [1, -2, 2]])
def test_vision_is_that_of_transformers(tower: str, layer: int | list[int]) -> None:
    import torch
    from PIL import Image
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    from vlmc.runtime.images import prepare

    given = config(tower, vision_feature_layer=layer)
    found = facts(given)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**given)).eval()
    wrapped = FAMILIES["llava-next"].vision(model)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    for height, width in ((90, 33), (20, 90), (64, 64), (1, 90)):
        image = prepare(Image.fromarray(noise[:height, :width]), found.images)
        tensors = [torch.from_numpy(image.tensors[spec.name]) for spec in found.vision_inputs]
        with torch.no_grad():
            features = wrapped(*tensors)
            [expected] = model.get_image_features(
                tensors[0][None], torch.tensor([[height, width]]), return_dict=True
            ).pooler_output
        assert len(features) == found.image_tokens(height, width) >= found.min_image_tokens
        torch.testing.assert_close(features, expected)
    assert FAMILIES["llava-next"].decoder(model) is model.model.language_model
    assert found.image_token_id == 7
    assert found.weights is not None
    # SigLIP's pooling head is not run.
    run = {k: p for k, p in model.named_parameters() if ".vision_tower.head." not in k}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.1)


def test_what_a_configuration_leaves_out_is_as_in_transformers() -> None:
    from transformers import LlavaNextConfig

    known = LlavaNextConfig()
    images = {"image_processor_type": "LlavaNextImageProcessorFast"}
    side = {"height": 336, "width": 336}
    images |= {"size": {"shortest_edge": 336}, "crop_size": side}
    found = facts({"model_type": "llava_next"}, images)
    options = found.images.options
    assert options["side"] == known.vision_config.image_size
    assert options["rows"] == known.vision_config.image_size // known.vision_config.patch_size
    assert json.loads(json.dumps(options["resolutions"])) == known.image_grid_pinpoints
    assert found.image_token_id == known.image_token_index
    assert found.text.layers == known.text_config.num_hidden_layers
    assert found.image_tokens(672, 672) == 576 + 48 * 49


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_feature_select_strategy": "full"}, "17 feature rows of a tile"),
        ({"image_grid_pinpoints": [[28, 28]]}, "not those of the model"),
        ({"image_grid_pinpoints": None}, "not those of the model"),
        ({"vision_config": {"model_type": "pixtral"}}, "'model_type' is 'pixtral'"),
        ({"vision_feature_layer": 9}, "layer 9 of a tower of 2 layers"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config(**changes))


def test_siglip_needs_all_its_rows() -> None:
    with pytest.raises(VlmcError, match="15 feature rows of a tile"):
        facts(config("siglip", vision_feature_select_strategy="default"))
