"""What families read from a checkpoint's JSON, against transformers' own configuration classes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_config, by_model_type
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.families.text import TEXT_DEFAULTS, text_facts, text_weights
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
CLIP_IMAGES: Json = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
}
QWEN_IMAGES: Json = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14}


def checkpoint(config: Json, images: Json) -> Checkpoint:
    return Checkpoint(config, {}, images, {}, {})


def llava(**changes: object) -> Json:
    config: Json = {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 14,
            "num_hidden_layers": 3,
        },
    }
    return config | changes


def qwen(**changes: object) -> Json:
    config: Json = {"model_type": "qwen2_vl", "hidden_size": 128, "num_attention_heads": 4}
    tower: Json = {"hidden_size": 128, "patch_size": 14}
    return config | {"num_key_value_heads": 2, "vision_config": tower} | changes


def facts(config: Json, images: Json) -> ModelFacts:
    return by_model_type(str(config["model_type"])).facts(checkpoint(config, images))


@pytest.mark.parametrize("model_type", sorted(TEXT_DEFAULTS))
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        {"hidden_size": 1024, "num_attention_heads": 64, "head_dim": 48},
    ],
)
def test_text_defaults_are_those_of_transformers(model_type: str, given: Json) -> None:
    assert_text_equals_transformers(model_type, given)
    known, config = TEXT_DEFAULTS[model_type], text_config(model_type, {})
    assert known.intermediate == config.intermediate_size
    assert known.tied == bool(getattr(config, "tie_word_embeddings", False))


# Other classes refuse null.
@pytest.mark.parametrize("model_type", ["granite", "llama", "qwen2", "qwen2_vl_text"])
def test_null_means_derived(model_type: str) -> None:
    given: Json = {"num_attention_heads": 16, "num_key_value_heads": None}
    assert_text_equals_transformers(model_type, given)
    assert text_facts(given, model_type).kv_heads == 16


def text_config(model_type: str, given: Json) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type == "gemma4_text":  # heads of all layers alike
        given = {"global_head_dim": given.get("head_dim", 256), **given}
    return CONFIG_MAPPING[model_type](pad_token_id=0, bos_token_id=1, eos_token_id=2, **given)


def assert_text_equals_transformers(model_type: str, given: Json) -> None:
    config = text_config(model_type, given)
    found = text_facts(given, model_type)
    assert found.layers == config.num_hidden_layers
    assert found.hidden == config.hidden_size
    assert found.heads == config.num_attention_heads
    grouped = TEXT_DEFAULTS[model_type].grouped
    assert found.kv_heads == (config.num_key_value_heads if grouped else found.heads)
    assert found.head_dim == (
        getattr(config, "head_dim", None) or config.hidden_size // found.heads
    )
    assert found.vocab == config.vocab_size
    assert found.max_positions == config.max_position_embeddings


def test_unknown_text_models_need_their_sizes() -> None:
    sizes: Json = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    found = text_facts(sizes, "brand_new")
    assert (found.kv_heads, found.head_dim, found.max_positions) == (4, 16, None)
    with pytest.raises(VlmcError, match="'vocab_size' is missing") as caught:
        text_facts({k: v for k, v in sizes.items() if k != "vocab_size"}, "qwen4")
    assert "did you mean 'qwen" in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, [64]])
def test_sizes_that_are_no_sizes(value: object) -> None:
    with pytest.raises(VlmcError, match=r"'hidden_size' is .*, not a whole number"):
        text_facts({"hidden_size": value}, "llama")


def test_hidden_size_must_divide_into_heads() -> None:
    with pytest.raises(VlmcError, match="does not divide"):
        text_facts({"hidden_size": 100, "num_attention_heads": 3}, "llama")


@pytest.mark.parametrize(
    ("tower", "strategy", "tokens"),
    [
        ("clip_vision_model", "default", 16),
        ("clip_vision_model", "full", 17),
        ("siglip_vision_model", "full", 16),
        ("siglip_vision_model", "default", 15),
    ],
)
def test_llava_counts_the_features_transformers_makes(
    tower: str, strategy: str, tokens: int
) -> None:
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
    }
    vision = {k: v for k, v in sizes.items() if k not in {"vocab_size", "num_key_value_heads"}}
    vision |= {"model_type": tower, "image_size": 60, "patch_size": 14}
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **sizes},
        vision_feature_select_strategy=strategy,
        image_token_index=7,
    )
    images = CLIP_IMAGES | {"crop_size": {"height": 60, "width": 60}}
    found = facts(json.loads(config.to_json_string()), images)
    assert found.image_tokens(480, 640) == found.min_image_tokens == tokens
    assert found.image_token_id == 7
    [pixels] = found.vision_inputs
    assert pixels.shape == (1, 3, 60, 60)
    model = LlavaForConditionalGeneration(config).eval()
    wrapped = FAMILIES["llava"].vision(model)
    with torch.no_grad():
        given = torch.zeros(1, 3, 60, 60)
        features = wrapped(given)
        expected = model.model.get_image_features(
            given,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=strategy,
        ).pooler_output[0]
    assert features.shape == (tokens, 32)
    torch.testing.assert_close(features, expected)
    assert FAMILIES["llava"].decoder(model) is model.model.language_model
    assert found.weights is not None
    counted = found.weights.language + found.weights.embedding + found.weights.head
    real = sum(p.numel() for p in model.model.language_model.parameters())
    real += model.lm_head.weight.numel()
    assert counted == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"model_type": "pixtral"}}, "'model_type' is 'pixtral'"),
        ({"vision_config": 3}, "'vision_config' is not a mapping"),
        ({"vision_feature_select_strategy": "half"}, "'half'"),
        ({"vision_feature_layer": 9}, "layer 9 of a tower of 3 layers"),
        ({"vision_feature_layer": "last"}, "neither a layer nor a list"),
        ({"vision_feature_layer": []}, "no layer is chosen"),
        ({"image_token_index": -1}, "'image_token_index' is -1"),
        ({"text_config": {"model_type": "mamba9"}}, "defaults of the text model 'mamba9'"),
    ],
)
def test_llava_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(llava(**changes), CLIP_IMAGES)


def test_llava_needs_the_processor_of_its_tower() -> None:
    other = CLIP_IMAGES | {"crop_size": {"height": 28, "width": 28}}
    with pytest.raises(VlmcError, match="28 x 28 pixels"):
        facts(llava(), other)


def test_llava_without_a_vision_config_is_clip_l() -> None:
    images = CLIP_IMAGES | {"crop_size": {"height": 336, "width": 336}}
    assert facts(llava(vision_config=None), images).min_image_tokens == 576


def test_both_names_of_the_placeholder() -> None:
    assert facts(llava(image_token_index=9), CLIP_IMAGES).image_token_id == 9
    assert facts(llava(image_token_id=8), CLIP_IMAGES).image_token_id == 8
    assert facts(llava(), CLIP_IMAGES).image_token_id == 32000


@pytest.mark.parametrize("key", ["vision_feature_layer", "vision_feature_layers"])
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_vipllava_reads_the_layers_transformers_reads(tower: str, key: str) -> None:
    import torch
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    config = VipLlavaConfig(
        vision_config={
            "model_type": tower,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
        | {"intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 50},
        vision_feature_layer=[-2, -4, 0],
        image_token_index=7,
    )
    written = json.loads(config.to_json_string())
    written[key] = written.pop("vision_feature_layer")
    found = facts(written, CLIP_IMAGES)
    model = VipLlavaForConditionalGeneration(config).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        features = FAMILIES["vipllava"].vision(model)(pixels)
        expected = model.model.get_image_features(pixels).pooler_output[0]
    assert features.shape == (found.min_image_tokens, 64)
    assert found.image_token_id == 7
    torch.testing.assert_close(features, expected)
    assert found.weights is not None
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "layer -5 of a tower of 3 layers"),
        ({"vision_feature_layers": "last"}, "neither a layer nor a list"),
        ({"vision_feature_layer": 9}, "layer 9 of a tower of 3 layers"),
        ({"vision_feature_layer": []}, "no layer is chosen"),
    ],
)
def test_vipllava_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(llava(model_type="vipllava", **changes), CLIP_IMAGES)


def test_qwen2_vl_flat_and_nested_are_the_same() -> None:
    flat = facts(qwen(), QWEN_IMAGES)
    nested = {k: v for k, v in qwen().items() if k in {"model_type", "vision_config"}}
    text = {k: v for k, v in qwen().items() if k not in nested}
    again = facts(nested | {"text_config": text}, QWEN_IMAGES)
    assert again.text == flat.text
    assert flat.text.model_type == "qwen2_vl_text"
    assert flat.positions.scheme == "mrope"
    assert flat.image_token_id == 151655
    patches, places = flat.vision_inputs
    assert patches.shape == ("patches", 3 * 2 * 14 * 14)
    assert places.shape == ("patches", 2)


def test_qwen2_vl_bounds_come_from_the_recipe() -> None:
    from dataclasses import replace

    given = checkpoint(qwen(), QWEN_IMAGES | {"min_pixels": 3136, "max_pixels": 12845056})
    family = FAMILIES["qwen2-vl"]
    assert family.facts(given).min_image_tokens == 4
    bounded = family.facts(replace(given, image_bounds={"min_pixels": 7840, "max_pixels": 100352}))
    assert bounded.min_image_tokens == 10
    assert bounded.image_tokens(28, 28) >= 10
    assert bounded.image_tokens(3000, 4000) <= 128


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision_config": {"hidden_size": 64}}, "features have 64 numbers"),
        ({"vision_config": {"hidden_size": 128, "patch_size": 16}}, "patch_size is 16"),
        ({"vision_config": {"hidden_size": 128, "spatial_merge_size": 3}}, "merge_size is 2"),
    ],
)
def test_qwen2_vl_variants_that_are_refused(changes: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(qwen(**changes), QWEN_IMAGES)


def test_qwen2_vl_vision_is_that_of_transformers() -> None:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 60,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": 14,
        },
        image_token_id=50,
    )
    found = facts(json.loads(config.to_json_string()), QWEN_IMAGES)
    model = Qwen2VLForConditionalGeneration(config).eval()
    assert found.weights is not None
    tower = sum(p.numel() for p in model.model.visual.parameters())
    assert found.weights.vision == pytest.approx(tower, rel=0.05)

    from vlmc.runtime.images.native_grid import positions

    patches = torch.randn(4 * 6, 3 * 2 * 14 * 14)
    with torch.no_grad():
        features = FAMILIES["qwen2-vl"].vision(model)(patches, torch.from_numpy(positions(4, 6, 2)))
        expected = model.model.visual(patches, grid_thw=torch.tensor([[1, 4, 6]])).pooler_output
    torch.testing.assert_close(features, expected)


def qwen2_5(**tower: object) -> Json:
    sizes: Json = {"hidden_size": 64, "out_hidden_size": 128, "patch_size": 14}
    return qwen(model_type="qwen2_5_vl", vision_config=sizes | tower)


def test_qwen2_5_vl_facts() -> None:
    found = facts(qwen2_5(), QWEN_IMAGES)
    assert found.text.model_type == "qwen2_5_vl_text"
    assert found.positions.scheme == "mrope"
    shapes = {spec.name: spec.shape for spec in found.vision_inputs}
    assert shapes == {
        "pixel_values": ("patches", 3 * 2 * 14 * 14),
        "patch_positions": ("patches", 2),
        "window_patches": ("windows", 8 * 8),
        "patch_slots": ("patches",),
    }
    # 100 pixels are 7 patches: 3 merged ones and a rest that transformers drops.
    small = facts(qwen2_5(window_size=100), QWEN_IMAGES)
    assert small.vision_inputs[2].shape == ("windows", 6 * 6)


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ({"out_hidden_size": 64}, "features have 64 numbers"),
        ({"patch_size": 16}, "patch_size is 16"),
        ({"window_size": 27}, "a window of 27 pixels is smaller than a merged patch of 28"),
        ({"fullatt_block_indexes": 7}, "fullatt_block_indexes: 7 is not a list of layers"),
    ],
)
def test_qwen2_5_vl_variants_that_are_refused(tower: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(qwen2_5(**tower), QWEN_IMAGES)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_qwen2_5_vl_vision_is_that_of_transformers(attention: str, tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from tests.checkpoints.native import qwen2_5_vl
    from vlmc.runtime.images.native_grid import positions, windows

    folder = qwen2_5_vl(tmp_path)
    read = read_checkpoint(folder, tokenizer=False)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, attn_implementation=attention
    ).eval()
    # Equal windows; ragged ones; fewer patches than a window has.
    grids = [(8, 8), (4, 6), (10, 14), (2, 12), (2, 2)]
    given = [torch.randn(rows * columns, 3 * 2 * 7 * 7) for rows, columns in grids]
    with torch.no_grad():
        wanted = [
            model.model.visual(patches, grid_thw=torch.tensor([[1, *grid]])).pooler_output
            for patches, grid in zip(given, grids, strict=True)
        ]
        vision = FAMILIES["qwen2.5-vl"].vision(model)
        for patches, grid, expected in zip(given, grids, wanted, strict=True):
            places = positions(*grid, 2)
            inputs = (places, *windows(places, 4))
            features = vision(patches, *map(torch.from_numpy, inputs))
            assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    counted = by_model_type("qwen2_5_vl").facts(read).weights
    assert counted is not None
    tower = sum(p.numel() for p in model.model.visual.parameters())
    assert counted.vision == pytest.approx(tower, rel=0.05)


@pytest.mark.parametrize(
    ("name", "tokens", "kv_heads", "head_dim"),
    [
        ("llava-1.5-7b", 576, 32, 128),
        ("llava-interleave-qwen-0.5b", 729, 16, 64),
        ("vip-llava-7b", 576, 32, 128),
        ("llava-onevision-0.5b", 729, 2, 64),
        ("granite-vision-3.2-2b", 729, 8, 64),
        ("granite-vision-4.1-4b", 144, 8, 64),
        ("llava-v1.6-mistral-7b", 576, 8, 128),
        ("llava-v1.6-vicuna-7b", 576, 32, 128),
        ("llava-next-video-7b", 576, 32, 128),
        ("internvl3-1b", 256, 2, 64),
        ("qwen2-vl-2b", 4, 2, 128),
        # Four tiles in a row and the whole, with the marks around them.
        ("smolvlm-256m", 5 * 64 + 13, 3, 64),
        ("qwen2-vl-7b", 4, 4, 128),
        ("qwen2.5-vl-3b", 4, 2, 128),
        ("qwen3-vl-2b", 64, 8, 128),
        ("aya-vision-8b", 169 + 3, 8, 128),
        ("pixtral-12b", 2, 8, 128),
        ("mistral-small-3.1", 2, 8, 128),
        ("ministral-3-3b", 2, 8, 128),
        ("lighton-ocr-1b", 1, 8, 128),
        ("glm-4.1v-9b", 8, 2, 128),
        ("glm-4.5v", 8, 8, 128),
        ("glm-ocr", 8, 8, 128),
        ("lfm2-vl-450m", 66, 8, 64),
        ("paddleocr-vl", 188, 2, 128),
        ("gemma-3-4b-it", 256, 4, 256),
        ("gemma-4-e2b-it", 140 + 2, 1, 256),
        ("paligemma-3b-mix-224", 256, 1, 256),
        ("paligemma2-3b-mix-448", 1024, 4, 256),
        ("llama-4-scout-17b-16e", 144, 8, 128),
        ("molmo2-4b", 2 * 14**2, 8, 128),
        ("command-a-vision", 256 + 3, 8, 128),
        ("deepseek-vl-1.3b", 576, 16, 128),
        ("got-ocr2", 256, 16, 64),
        ("ovis2-1b", 256 + 3, 2, 64),
        ("idefics2-8b", 5 * (64 + 1) + 1, 8, 128),
        ("blip2-opt-2.7b", 32, 32, 80),
        ("instructblip-vicuna-7b", 32, 32, 128),
        ("kosmos-2-patch14-224", 64, 32, 64),
    ],
)
def test_published_models(name: str, tokens: int, kv_heads: int, head_dim: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    read = read_checkpoint(CONFIGS / name, tokenizer=False)
    found = by_config(read.config).facts(read)
    assert found.min_image_tokens == tokens
    assert (found.text.kv_heads, found.text.head_dim) == (kv_heads, head_dim)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(CONFIGS / name))
    counted = found.weights
    assert counted is not None
    # SigLIP's pooling head, where a tower has one, is not run; nor is a tower of sounds.
    unused = (".vision_tower.head.", ".audio_tower.", ".embed_audio.")
    run = {k: p for k, p in model.named_parameters() if not any(part in k for part in unused)}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(counted).values()) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize(
    "name",
    [
        "llava-1.5-7b",
        "llava-interleave-qwen-0.5b",
        "llava-onevision-0.5b",
        "granite-vision-3.2-2b",
        "llava-v1.6-mistral-7b",
        "llava-next-video-7b",
        "internvl3-1b",
        "qwen2-vl-7b",
        "qwen2.5-vl-3b",
        "qwen3-vl-2b",
        "pixtral-12b",
        "mistral-small-3.1",
        "ministral-3-3b",
        "lighton-ocr-1b",
        "glm-4.1v-9b",
        "glm-4.5v",
        "glm-ocr",
        "lfm2-vl-450m",
        "paddleocr-vl",
        "smolvlm-256m",
        "gemma-3-4b-it",
        "gemma-4-e2b-it",
        "paligemma-3b-mix-224",
        "paligemma2-3b-mix-448",
        "llama-4-scout-17b-16e",
        "molmo2-4b",
        "aya-vision-8b",
        "command-a-vision",
        "deepseek-vl-1.3b",
        "got-ocr2",
        "janus-pro-1b",
        "ovis2-1b",
        "idefics2-8b",
        "fuyu-8b",
        "chameleon-7b",
    ],
)
def test_published_text_sizes_are_those_transformers_reads(name: str) -> None:
    from transformers import AutoConfig

    read = read_checkpoint(CONFIGS / name, tokenizer=False)
    found = by_config(read.config).facts(read).text
    config = AutoConfig.from_pretrained(CONFIGS / name).get_text_config()
    assert found.layers == config.num_hidden_layers
    assert found.hidden == config.hidden_size
    assert found.kv_heads == getattr(config, "num_key_value_heads", found.heads)
    assert found.vocab == config.vocab_size
    assert found.max_positions == config.max_position_embeddings


def test_glm_with_a_decoder_of_experts_is_refused() -> None:
    config = {"model_type": "glm46v", "text_config": {"model_type": "glm4v_moe_text"}}
    with pytest.raises(VlmcError, match="'glm4v_moe_text'"):
        by_config(config).facts(Checkpoint(config, {}, {}, {}, {}))


def test_experts_that_cannot_be_chosen_are_refused() -> None:
    read = read_checkpoint(CONFIGS / "glm-4.5v", tokenizer=False)
    text = read.config["text_config"]
    for wrong in (
        {"n_group": 3},
        {"n_group": 128},
        {"n_group": 32, "topk_group": 1},
        {"topk_group": 2},
        {"num_experts_per_tok": 129},
    ):
        config = {**read.config, "text_config": {**text, **wrong}}
        with pytest.raises(VlmcError, match="a token cannot choose"):
            by_config(config).facts(replace(read, config=config))


def test_tied_tables_are_counted_once() -> None:
    text = text_facts({"tie_word_embeddings": True}, "llama")
    assert text_weights({"tie_word_embeddings": True}, text, tied=None)[2] == 0
    assert text_weights({}, text, tied=None)[2] == text.vocab * text.hidden
    assert text_weights({}, text, tied=True)[2] == 0


def test_unknown_model_types_list_the_known_ones() -> None:
    with pytest.raises(VlmcError, match="unknown model type 'lava'") as caught:
        by_model_type("lava", at="config.json")
    assert "did you mean 'llava'?" in str(caught.value)


def test_families_are_named_as_their_rows() -> None:
    assert list(FAMILIES) == [row.name for row in FAMILIES.values()]
    types = [(name, row.tower) for row in FAMILIES.values() for name in row.model_types]
    assert len(types) == len(set(types))
