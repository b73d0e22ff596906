"""What families read of published checkpoints, against transformers' own configuration classes."""

from dataclasses import replace
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES, by_config, by_model_type
from vlmc.families.spec import Checkpoint
from vlmc.families.text import text_facts, text_weights
from vlmc.passes.timm_towers import own_towers
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"


@pytest.mark.parametrize(
    ("name", "tokens", "kv_heads", "head_dim"),
    [
        ("llava-1.5-7b", 576, 32, 128),
        ("llava-interleave-qwen-0.5b", 729, 16, 64),
        ("vip-llava-7b", 576, 32, 128),
        ("llava-onevision-0.5b", 729, 2, 64),
        ("fastvlm-0.5b", 256, 2, 64),
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
        ("qwen2.5-omni-7b", 4, 4, 128),
        ("qwen3-vl-2b", 64, 8, 128),
        ("qwen3.5-4b", 64, 4, 256),
        ("aya-vision-8b", 169 + 3, 8, 128),
        ("pixtral-12b", 2, 8, 128),
        ("mistral-small-3.1", 2, 8, 128),
        ("ministral-3-3b", 2, 8, 128),
        ("lighton-ocr-1b", 1, 8, 128),
        ("glm-4.1v-9b", 8, 2, 128),
        ("glm-4.5v", 8, 8, 128),
        ("glm-ocr", 8, 8, 128),
        ("lfm2-vl-450m", 66, 8, 64),
        ("minicpm-v-4.6", 1 + 5, 2, 256),
        ("paddleocr-vl", 188, 2, 128),
        ("granite-docling-500m", 64 + 3, 4, 64),
        ("video-llama-3-2b", 16, 2, 128),
        ("gemma-3-4b-it", 256, 4, 256),
        ("gemma-3n-e2b-it", 256, 2, 256),
        ("gemma-4-e2b-it", 140 + 2, 1, 256),
        ("paligemma-3b-mix-224", 256, 1, 256),
        ("paligemma2-3b-mix-448", 1024, 4, 256),
        ("llama-4-scout-17b-16e", 144, 8, 128),
        ("perception-lm-1b", 2 * 256, 8, 64),
        ("molmo2-4b", 2 * 14**2, 8, 128),
        ("command-a-vision", 256 + 3, 8, 128),
        ("deepseek-vl-1.3b", 576, 16, 128),
        ("got-ocr2", 256, 16, 64),
        ("pp-chart2table", 256, 16, 64),
        ("ovis2-1b", 256 + 3, 2, 64),
        ("idefics2-8b", 5 * (64 + 1) + 1, 8, 128),
        ("aria-25b", 256, 20, 128),
        ("ernie-4.5-vl-28b", 4, 4, 128),
        ("hunyuan-ocr", 256 + 3, 8, 128),
        ("video-llava-7b", 256, 32, 128),
        ("blip2-opt-2.7b", 32, 32, 80),
        ("instructblip-vicuna-7b", 32, 32, 128),
        ("kosmos-2-patch14-224", 64, 32, 64),
    ],
)
def test_published_models(name: str, tokens: int, kv_heads: int, head_dim: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    read = read_checkpoint(CONFIGS / name, tokenizer=False)
    family = by_config(read.config)
    found = family.facts(read)
    assert found.min_image_tokens == tokens
    assert (found.text.kv_heads, found.text.head_dim) == (kv_heads, head_dim)
    with own_towers(family.timm_tower), torch.device("meta"):
        config = AutoConfig.from_pretrained(CONFIGS / name)
        config = getattr(config, family.part or "", config)
        model = AutoModelForImageTextToText.from_config(config)
    counted = found.weights
    assert counted is not None
    # SigLIP's pooling head, where a tower has one, is not run; nor are towers of sounds and videos,
    # nor Granite Docling's fine route.
    sides = (".audio_tower.", ".embed_audio.", ".video_tower.")
    unused = (".vision_tower.head.", *sides, ".connector.fine.")
    run = {k: p for k, p in model.named_parameters() if not any(part in k for part in unused)}
    real = sum(p.numel() for p in run.values())
    assert sum(vars(counted).values()) == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize(
    "name",
    [
        "llava-1.5-7b",
        "llava-interleave-qwen-0.5b",
        "llava-onevision-0.5b",
        "fastvlm-0.5b",
        "granite-vision-3.2-2b",
        "llava-v1.6-mistral-7b",
        "llava-next-video-7b",
        "internvl3-1b",
        "qwen2-vl-7b",
        "qwen2.5-vl-3b",
        "qwen2.5-omni-7b",
        "qwen3-vl-2b",
        "qwen3.5-4b",
        "pixtral-12b",
        "mistral-small-3.1",
        "ministral-3-3b",
        "lighton-ocr-1b",
        "glm-4.1v-9b",
        "glm-4.5v",
        "glm-ocr",
        "lfm2-vl-450m",
        "minicpm-v-4.6",
        "paddleocr-vl",
        "granite-docling-500m",
        "video-llama-3-2b",
        "smolvlm-256m",
        "gemma-3-4b-it",
        "gemma-3n-e2b-it",
        "gemma-4-e2b-it",
        "paligemma-3b-mix-224",
        "paligemma2-3b-mix-448",
        "llama-4-scout-17b-16e",
        "perception-lm-1b",
        "molmo2-4b",
        "aya-vision-8b",
        "command-a-vision",
        "deepseek-vl-1.3b",
        "got-ocr2",
        "pp-chart2table",
        "janus-pro-1b",
        "ovis2-1b",
        "idefics2-8b",
        "aria-25b",
        "ernie-4.5-vl-28b",
        "hunyuan-ocr",
        "video-llava-7b",
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
