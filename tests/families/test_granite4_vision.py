"""Granite 4 Vision's facts and vision against transformers' own model."""

import json

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

PINPOINTS = [[56, 112], [112, 56], [112, 112]]
SIDE = {"height": 56, "width": 56}
IMAGES: Json = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": SIDE,
    "crop_size": SIDE,
    "image_grid_pinpoints": PINPOINTS,
}
FORMER: Json = {
    "model_type": "blip_2_qformer",
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "cross_attention_frequency": 2,
}


def config(tower: str = "siglip", **changes: object) -> Json:
    sizes: Json = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision: Json = {"model_type": f"{tower}_vision_model", "image_size": 56, "patch_size": 7}
    return {
        "model_type": "granite4_vision",
        "vision_config": {**vision, **sizes, "hidden_size": 128},
        "text_config": {"model_type": "granite4_vision_text", "vocab_size": 50, **sizes}
        | {"hidden_size": 32},
        "qformer_config": FORMER,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": 7,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        "downsample_rate": "2/4",
        "deepstack_layer_map": [[-2, 1], [0, 0]],
        "spatial_target_layers": [0, 5],
    } | changes


def facts(given: Json, rate: str = "2/4", images: Json = IMAGES) -> ModelFacts:
    read = Checkpoint(given, {"downsample_rate": rate}, images, {}, {})
    return FAMILIES["granite4-vision"].facts(read)


@pytest.mark.parametrize(
    ("tower", "rate", "spatial"),
    [("siglip", "2/4", [0, 5]), ("clip", "4/8", []), ("siglip", "1/4", []), ("clip", "1/2", [1])],
)
def test_vision_is_that_of_transformers(tower: str, rate: str, spatial: list[int]) -> None:
    import torch
    from PIL import Image
    from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration

    from vlmc.runtime.images import prepare

    given = config(tower, downsample_rate=rate, spatial_target_layers=spatial)
    found = facts(given, rate)
    model = Granite4VisionForConditionalGeneration(Granite4VisionConfig(**given)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.dim()))
    wrapped = FAMILIES["granite4-vision"].vision(model)
    noise = np.random.default_rng(0).integers(0, 256, (190, 190, 3), dtype=np.uint8)
    for height, width in ((190, 63), (40, 190), (64, 64), (1, 90)):
        image = prepare(Image.fromarray(noise[:height, :width]), found.images)
        tensors = [torch.from_numpy(image.tensors[spec.name]) for spec in found.vision_inputs]
        with torch.no_grad():
            nothing, added = wrapped(*tensors)
            parts = model.get_image_features(
                tensors[0][None], torch.tensor([[height, width]]), return_dict=True
            ).deepstack_features
        # As its forward does: what comes later for a layer replaces what came before.
        expected = {layer: one for layer, [one] in parts}
        assert not nothing.any()
        assert added.shape == (image.tokens, len(found.deepstack), 32)
        for at, layer in enumerate(found.deepstack):
            torch.testing.assert_close(added[:, at], expected[layer])
    assert set(found.deepstack) == {layer for layer in expected if layer < 2}
    assert found.weights is not None
    run = {k: p for k, p in model.named_parameters() if ".vision_tower.head." not in k}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.1)


def test_the_decoders_states_are_scaled_as_its_logits() -> None:
    import torch
    from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration

    text = config()["text_config"]
    assert isinstance(text, dict)
    scaled = Granite4VisionConfig(**config(text_config=text | {"logits_scaling": 4.0}))
    model = Granite4VisionForConditionalGeneration(scaled).eval()
    ids = torch.tensor([[3, 9, 4]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        states = FAMILIES["granite4-vision"].decoder(model)(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model.lm_head(states), expected)


def test_what_a_configuration_leaves_out_is_as_in_transformers() -> None:
    from transformers import Granite4VisionConfig

    given: Json = {
        "model_type": "granite4_vision",
        "downsample_rate": "4/8",
        "deepstack_layer_map": [[-2, 3]],
        "vision_feature_select_strategy": "full",
    }
    known = Granite4VisionConfig(**given)
    tower = json.loads(known.vision_config.to_json_string())
    # What is left out is a CLIP of 7 patches a side, which no window of 8 fits.
    assert tower["image_size"] // tower["patch_size"] == 7
    side = {"height": 256, "width": 256}
    images = IMAGES | {"size": side, "crop_size": side, "image_grid_pinpoints": [[256, 512]]}
    vision: Json = {"model_type": "siglip_vision_model", "image_size": 256}
    sized = given | {"vision_config": vision, "image_grid_pinpoints": [[256, 512]]}
    found = facts(sized, "4/8", images)
    assert found.deepstack == (3, *known.spatial_target_layers)
    assert found.text.layers == known.text_config.num_hidden_layers
    assert found.image_token_id == known.image_token_index
    assert found.images.options["rows"] == 8


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"downsample_rate": None}, "None is not a ratio"),
        ({"downsample_rate": "1/0"}, "does not fit the 8 patches"),
        ({"downsample_rate": "2/3"}, "does not fit the 8 patches"),
        ({"downsample_rate": "1/4"}, "need a half"),
        ({"downsample_rate": "3/4", "spatial_target_layers": []}, "share patches"),
        ({"downsample_rate": "1/2"}, "the model's is '1/2', the processor's '2/4'"),
        ({"deepstack_layer_map": None}, "not a list of pairs"),
        ({"deepstack_layer_map": [[1]]}, "not a list of pairs"),
        ({"deepstack_layer_map": [["a", 1]]}, "not a list of pairs"),
        ({"deepstack_layer_map": [[4, 1]]}, "layer 4 of a tower of 2 layers"),
        ({"spatial_vision_layer": "last"}, "layer 'last' of a tower"),
        ({"spatial_target_layers": 3}, "not a list of layers"),
        ({"spatial_target_layers": [0, 1, 2, 3, 4]}, "5 layers for the 4 corners"),
        ({"deepstack_layer_map": [[0, 9]], "spatial_target_layers": []}, "no layer of the decoder"),
        ({"vision_feature_select_strategy": "default"}, "63 feature rows of a tile"),
    ],
)
def test_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config(**changes))
