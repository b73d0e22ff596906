"""Phi-4-multimodal: its facts, and its features beside transformers' with default settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.build.phi_images import Phi4Images, projected
from tests.build.questions import picture
from tests.checkpoints.phi import phi4_multimodal
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.phi4_multimodal import facts, layers_read
from vlmc.families.spec import Checkpoint
from vlmc.families.text import text_facts
from vlmc.runtime.images import prepare, together
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
SIZE = 30
# Pictures that fill their crops, and one that does not.
FULL, PADDED = (60, 30), (70, 30)


def checkpoint(config=None, images=None):
    size = {"size": {"height": SIZE, "width": SIZE}, "patch_size": 6}
    named = {"image_processor_type": "Phi4MultimodalImageProcessor"}
    tower = {"image_size": SIZE, "crop_size": SIZE, "patch_size": 6}
    return Checkpoint(
        {"model_type": "phi4_multimodal", "vision_config": tower} | (config or {}),
        {},
        named | size | (images or {}),
        {},
        {},
    )


def test_the_published_model():
    import torch
    from transformers import AutoConfig, AutoModelForMultimodalLM

    folder = CONFIGS / "phi-4-multimodal"
    read = read_checkpoint(folder, tokenizer=False)
    found = facts(read)
    assert (found.text.kv_heads, found.text.head_dim, found.image_token_id) == (8, 128, 200010)
    # Beyond so many, transformers turns all of a prompt by other factors.
    assert found.text.max_positions == 4096
    assert found.images.options["values"] == {
        "rescale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3, "fused": True
    }  # fmt: skip
    # Crops of 448 x 448 pixels have 16 x 16 rows, the whole picture 256 + 16, and a mark between.
    assert found.image_tokens(448, 448) == 2 * 272 + 1
    assert found.image_tokens(480, 640) == 24 * (32 + 1) + 1 + 272
    assert found.min_image_tokens == 272 + 1 + 17
    with torch.device("meta"):
        model = AutoModelForMultimodalLM.from_config(AutoConfig.from_pretrained(folder))
    run = {k: p for k, p in model.named_parameters() if "audio" not in k and ".head." not in k}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("shown", [[FULL], [PADDED], [FULL, PADDED], [FULL, FULL]], ids=str)
@pytest.mark.parametrize(
    ("patches", "patch", "tower"),
    [(5, 6, {"feature_layer": -2}), (4, 7, {"feature_layer": -1}), (4, 7, {"feature_layer": 1})],
)
def test_features_are_those_of_default_attention(tmp_path, shown, patches, patch, tower):
    import torch
    from transformers import AutoModelForCausalLM

    side = patches * patch
    folder = phi4_multimodal(tmp_path, patches=patches, patch=patch, tower=tower)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.vision_config._attn_implementation == "sdpa"
    found = facts(read_checkpoint(folder, tokenizer=False))
    pictures = [picture(w * side // SIZE, h * side // SIZE) for w, h in shown]
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    given = Phi4Images(settings)(pictures)
    ids = torch.full((1, sum(given.pop("num_img_tokens"))), found.image_token_id)
    wanted = projected(model, {"input_ids": ids, **given}).pooler_output
    FAMILIES["phi4-multimodal"].reference(model)
    rows = model.get_image_features(**given, return_dict=True).pooler_output
    assert torch.equal(torch.cat(wanted), rows[0])
    module = FAMILIES["phi4-multimodal"].vision(model)
    ready = together([prepare(one, found.images) for one in pictures], found.images)
    for one, expected in zip(ready, wanted, strict=True):
        tensors = {name: torch.from_numpy(value) for name, value in one.tensors.items()}
        with torch.no_grad():
            assert torch.allclose(module(**tensors), expected, atol=1e-5)


@pytest.mark.parametrize(("shown", "alike"), [(FULL, False), (PADDED, True)])
def test_eager_attention_differs_where_nothing_is_padded(tmp_path, shown, alike):
    import torch
    from transformers import AutoModelForCausalLM

    folder = phi4_multimodal(tmp_path)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    given = Phi4Images(settings)([picture(*shown)])
    ids = torch.full((1, given.pop("num_img_tokens")[0]), 3)
    rows = []
    for attention in ("sdpa", "eager"):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        rows.append(projected(model, {"input_ids": ids, **given}).pooler_output[0].detach())
    assert np.allclose(*rows, atol=1e-3) == alike


@pytest.mark.parametrize(
    ("config", "images", "expected"),
    [
        ({"vision_config": {"image_size": SIZE, "patch_size": 6}}, {}, "crops of 448 pixels"),
        ({}, {"size": {"height": 60, "width": 60}}, "60 x 60 pixels"),
        ({}, {"patch_size": 5}, "patch_size is 5"),
        ({}, {"image_processor_type": "CLIPImageProcessor"}, "unknown image processor"),
        ({"vision_config": {"feature_layer": 99}}, {}, "99 is none of the 28 states"),
        ({"num_attention_heads": 7}, {}, "does not divide into 7 heads"),
    ],
)
def test_what_cannot_be_is_refused(config, images, expected):
    tower = {"image_size": SIZE, "crop_size": SIZE, "patch_size": 6}
    if "feature_layer" in config.get("vision_config", {}):
        config = {"vision_config": tower | config["vision_config"]}
    with pytest.raises(VlmcError, match=expected):
        facts(checkpoint(config, images))


def test_states_are_counted_from_either_end():
    assert [layers_read(at, 3) for at in (-1, -2, 0, 3)] == [3, 2, 0, 3]
    with pytest.raises(VlmcError, match="none of the 4 states"):
        layers_read([-2, -1], 3)


@pytest.mark.parametrize(
    ("kind", "rotary", "most"),
    [
        ("phi4_multimodal", {"rope_scaling": {"type": "su"}}, 4096),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, 4096),
        ("phi3", {"rope_scaling": {"type": "longrope"}, "max_position_embeddings": 512}, 512),
        ("phi3", {"rope_scaling": None, "max_position_embeddings": 9000}, 9000),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "original_max_position_embeddings": 77,
                }
            },
            77,
        ),
        ("mistral", {"rope_parameters": {"rope_type": "yarn"}}, 131072),
    ],
)
def test_positions_end_where_longrope_changes(kind, rotary, most):
    assert text_facts(rotary, kind).max_positions == most
