"""Checkpoints of LLaVA and Qwen2-VL as they used to be saved, in whole or in parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.build.edits import Json, edit, resave, say_tied, shard, template_to_tokenizer
from tests.checkpoints.anyres import llava_onevision
from tests.checkpoints.fixed import llava
from tests.checkpoints.native import qwen2_vl


def without_template(folder: Path) -> Path:
    """A LLaVA-OneVision whose chat template was not saved."""
    llava_onevision(folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def said_tied(folder: Path, *, equal: bool) -> Path:
    """A configuration that says tied, with both tensors stored."""
    from safetensors.torch import load_file, save_file

    llava(folder)
    edit(folder / "config.json", say_tied)
    weights = load_file(folder / "model.safetensors")
    if equal:
        embedding = weights["language_model.model.embed_tokens.weight"]
        weights["language_model.lm_head.weight"] = embedding.clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def biased_in_shards(folder: Path) -> Path:
    """Biases everywhere, one key/value head, heads of 24, stretched rotary, several files."""
    rotary = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    llava(
        folder,
        attention_bias=True,
        mlp_bias=True,
        num_key_value_heads=1,
        head_dim=24,
        rope_parameters=rotary,
    )
    return shard(folder)


def old_names(folder: Path) -> Path:
    """Names as in the first checkpoints, bfloat16, a tie the weights deny, several end tokens."""
    llava(folder, seed=3)
    resave(folder, {"vision_tower.": "vision_tower.vision_model."}, "bfloat16")
    edit(folder / "config.json", say_tied)
    ends = [2, *range(40, 140)]
    edit(folder / "generation_config.json", lambda values: values.update(eos_token_id=ends))
    return folder


def layers_side_by_side(folder: Path) -> Path:
    """Features of several layers, with the class token; later names, no generation config."""
    llava(folder, vision_feature_layer=[-2, 1], vision_feature_select_strategy="full")
    later = {
        "language_model.lm_head.": "lm_head.",
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    resave(folder, later)
    template = folder / "chat_template.jinja"
    text = json.dumps({"chat_template": template.read_text(encoding="utf-8")})
    (folder / "chat_template.json").write_text(text, encoding="utf-8")
    template.unlink()
    (folder / "generation_config.json").unlink()
    return folder


def older_processor(folder: Path) -> Path:
    """A Qwen2 decoder of half windows; image processing and template where they used to lie."""
    llava(
        folder,
        tower="siglip",
        text="qwen2",
        vocab_size=451,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8"))
    images = values.pop("image_processor")
    processor.write_text(json.dumps(values), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    template_to_tokenizer(folder)
    return folder


def bakllava(folder: Path) -> Path:
    """BakLLaVA as on the hub: a Mistral without windows, names and sizes as they used to be."""
    llava(folder, text="mistral", sliding_window=None, num_key_value_heads=1, seed=4)
    resave(folder, {"vision_tower.": "vision_tower.vision_model."}, "float16")

    def older(config: Json) -> None:
        config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")[
            "rope_theta"
        ]
        config.update(ignore_index=-100, vocab_size=config["text_config"]["vocab_size"])
        del config["tie_word_embeddings"]

    edit(folder / "config.json", older)
    return folder


def flat_qwen(folder: Path, make: Callable[[Path], Path] = qwen2_vl) -> Path:
    """As on the hub: a flat config, mrope under its old name, float16, pixel bounds in pixels."""

    def flat(config: Json) -> None:
        text = config.pop("text_config")
        rotary = text.pop("rope_parameters")
        del text["model_type"]
        config.update({key: value for key, value in text.items() if key not in config})
        config["rope_theta"] = rotary["rope_theta"]
        config["rope_scaling"] = {"type": "mrope", "mrope_section": rotary["mrope_section"]}

    def bounds(values: Json) -> None:
        size = values.pop("size")
        values.update(min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])

    make(folder)
    resave(folder, {}, "float16")
    edit(folder / "config.json", flat)
    edit(folder / "preprocessor_config.json", bounds)
    template_to_tokenizer(folder)
    return folder


def tied_qwen2_vl(folder: Path) -> Path:
    """A head that is the embedding, one key/value head, later names."""
    qwen2_vl(folder, tied=True, num_key_value_heads=1)
    resave(folder, {"visual.": "model.visual.", "model.": "model.language_model."})
    return folder
