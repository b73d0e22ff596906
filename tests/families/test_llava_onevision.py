"""LLaVA-OneVision's facts and vision against transformers' own model."""

import json
from itertools import product

import numpy as np
import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json

PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56], [84, 84]]
SIDE = {"height": 28, "width": 28}
IMAGES: Json = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "size": SIDE,
    "image_grid_pinpoints": PINPOINTS,
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
RATIO = "vision_aspect_ratio"


def config(tower: str = "siglip", **changes: object) -> Json:
    vision: Json = {"model_type": f"{tower}_vision_model", "image_size": 28, "patch_size": 7}
    return {
        "model_type": "llava_onevision",
        "vision_config": vision | SIZES,
        "text_config": {"model_type": "qwen2", "vocab_size": 50, "num_key_value_heads": 1, **SIZES},
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": 7,
        "vision_feature_select_strategy": "default" if tower == "clip" else "full",
        RATIO: "anyres_max_4",
    } | changes


def facts(given: Json, images: Json = IMAGES, ratio: str | None = "anyres_max_4") -> ModelFacts:
    processor: Json = {} if ratio is None else {RATIO: ratio}
    return FAMILIES["llava-onevision"].facts(Checkpoint(given, processor, images, {}, {}))


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-1, [-2, 0]])
def test_vision_is_that_of_transformers(tower: str, layer: int | list[int]) -> None:
    import torch
    from PIL import Image
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    from vlmc.runtime.images import prepare

    given = config(tower, vision_feature_layer=layer)
    found = facts(given)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**given)).eval()
    wrapped = FAMILIES["llava-onevision"].vision(model)
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    shapes = (90, 33), (20, 90), (80, 84), (1, 90)
    for (height, width), count in product(shapes, (1, 2)):
        image = prepare(Image.fromarray(noise[:height, :width]), found.images, count=count)
        tensors = [torch.from_numpy(image.tensors[spec.name]) for spec in found.vision_inputs]
        with torch.no_grad():
            features = wrapped(*tensors)
            one, *_ = model.get_image_features(
                tensors[0][None].expand(count, -1, -1, -1, -1),
                torch.tensor([[height, width]] * count),
                batch_num_images=torch.tensor([count]),
                return_dict=True,
            ).pooler_output
        assert len(features) == image.tokens >= found.min_image_tokens
        torch.testing.assert_close(features, one)
    assert FAMILIES["llava-onevision"].decoder(model) is model.model.language_model
    assert found.image_token_id == 7
    assert found.weights is not None
    run = {k: p for k, p in model.named_parameters() if ".vision_tower.head." not in k}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.1)


def test_what_a_configuration_leaves_out_is_as_in_transformers() -> None:
    from transformers import LlavaOnevisionConfig

    known = LlavaOnevisionConfig()
    images: Json = {"image_processor_type": "LlavaOnevisionImageProcessorFast"}
    found = facts({"model_type": "llava_onevision"}, images, None)
    options = found.images.options
    assert options["side"] == known.vision_config.image_size
    assert options["rows"] == known.vision_config.image_size // known.vision_config.patch_size
    assert json.loads(json.dumps(options["resolutions"])) == known.image_grid_pinpoints
    assert options["most_tiles"] == 9
    assert found.image_token_id == known.image_token_index
    assert found.text.model_type == known.text_config.model_type
    assert found.text.layers == known.text_config.num_hidden_layers
    assert found.image_tokens(384, 384) == 729 + 27 * 28
    # A tower whose kind is not said has that kind's own sizes, not the published model's.
    tower: Json = {"image_size": 28, "patch_size": 7}
    again = facts(config(vision_config=tower | SIZES))
    assert again.images.options["rows"] == 4


@pytest.mark.parametrize(
    ("changes", "ratio", "expected"),
    [
        ({}, "anyres_max_9", "the model shrinks pictures to 4 tiles"),
        ({RATIO: "anyres"}, "anyres", "'vision_aspect_ratio' is 'anyres'"),
        ({RATIO: 9}, None, "'vision_aspect_ratio' is 9"),
        ({RATIO: "anyres_max_0"}, "anyres_max_0", "'vision_aspect_ratio' is 'anyres_max_0'"),
        ({"image_grid_pinpoints": [[28, 28]]}, "anyres_max_4", "not those of the model"),
        ({"vision_feature_select_strategy": "default"}, "anyres_max_4", "15 feature rows"),
        ({"vision_config": {"model_type": "pixtral"}}, "anyres_max_4", "'pixtral'"),
        ({"text_config": 3}, "anyres_max_4", "'text_config' is not a mapping"),
    ],
)
def test_variants_that_are_refused(changes: Json, ratio: str | None, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config(**changes), ratio=ratio)
