"""Checkpoints as they are found in the wild: other decoders, other shapes, older ways to save.

Each combines several peculiarities, because a build costs seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.checkpoints.anyres import granite4_vision, llava_next, llava_onevision
from tests.checkpoints.bidirectional import gemma3, paligemma
from tests.checkpoints.fixed import deepseek_vl, janus, llava
from tests.checkpoints.idefics2 import idefics2
from tests.checkpoints.native import qwen2_5_vl, qwen2_vl
from tests.checkpoints.ovis2 import ovis2
from tests.checkpoints.parts import LLAVA_TEMPLATE
from tests.checkpoints.tiles import aya_vision, cohere2_vision, got_ocr2, idefics3, internvl
from tests.checkpoints.towerless import chameleon, fuyu

Json = dict[str, Any]


FUYU_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}\n{% endif %}{% endfor %}{% endfor %}"
)


CHAMELEON_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}"
)


def edit(path: Path, change: Callable[[Json], object]) -> None:
    """Changes a JSON file in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def resave(folder: Path, prefixes: Mapping[str, str], dtype: str = "float32") -> None:
    """Writes the weights again, names beginning otherwise and in another element type."""
    import torch
    from safetensors.torch import load_file, save_file

    def rename(name: str) -> str:
        found = next((old for old in prefixes if name.startswith(old)), "")
        return prefixes.get(found, "") + name.removeprefix(found)

    path = folder / "model.safetensors"
    held = {
        rename(name): value.to(getattr(torch, dtype)) for name, value in load_file(path).items()
    }
    save_file(held, path, metadata={"format": "pt"})
    edit(folder / "config.json", lambda config: config.update(dtype=dtype))


def template_to_tokenizer(folder: Path) -> None:
    """Moves the chat template into the tokenizer's settings."""
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    edit(folder / "tokenizer_config.json", lambda values: values.update(chat_template=text))
    template.unlink()


def say_tied(config: Json) -> None:
    """Claims that the output head is the embedding."""
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True


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


def shard(folder: Path) -> Path:
    """Saves the model again, in many files."""
    import transformers as hf

    model = hf.LlavaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="150KB")
    assert (folder / "model.safetensors.index.json").is_file()
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


def hub_internvl(folder: Path) -> Path:
    """As on the hub: a tie that the weights deny, tokens named in a section, bfloat16."""

    def untold(config: Json) -> None:
        del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]

    def section(values: Json) -> None:
        names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
        values["extra_special_tokens"] = {name: values.pop(name) for name in names}

    internvl(folder, seed=2)
    resave(folder, {}, "bfloat16")
    edit(folder / "config.json", untold)
    edit(folder / "tokenizer_config.json", section)
    fast = {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_size": None}
    edit(folder / "preprocessor_config.json", lambda values: values.update(fast))
    return folder


def ruled(folder: Path) -> Path:
    """A generation config that has logits changed, greedy or not, as Qwen2.5-VL's does."""
    qwen2_5_vl(folder, seed=5)
    rules = {
        "do_sample": True,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "bad_words_ids": [[40], [41, 42]],
        "suppress_tokens": [50, 51],
        "begin_suppress_tokens": [60],
        "min_new_tokens": 5,
    }
    edit(folder / "generation_config.json", lambda values: values.update(rules))
    return folder


def hub_gemma3(folder: Path) -> Path:
    """As on the hub: few keys, names as of 4.50, stretched rotary, pan and scan that is null."""

    def fewer(config: Json) -> None:
        text = config["text_config"]
        del text["layer_types"], text["rope_parameters"]
        text.update(sliding_window_pattern=2, rope_scaling={"factor": 8.0, "rope_type": "linear"})

    gemma3(folder, num_key_value_heads=1, hidden_size=48, intermediate_size=80)
    resave(folder, {"model.language_model.": "language_model.model."}, "bfloat16")
    edit(folder / "config.json", fewer)
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8"))
    images = values.pop("image_processor") | {"do_pan_and_scan": True, "do_convert_rgb": None}
    images["image_processor_type"] = "Gemma3ImageProcessor"
    processor.write_text(json.dumps(values), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    return folder


def hub_fuyu(folder: Path) -> Path:
    """As on the hub: the decoder's keys at the top level, old names, an older processor's file."""
    fuyu(folder, qk_layernorm=False, hidden_act="gelu")

    def flat(config: Json) -> None:
        text = config.pop("text_config")
        del config["image_token_id"], text["model_type"], text["rope_parameters"]
        kept = {key: value for key, value in text.items() if not key.endswith("partial_rotary")}
        config.update({**kept, "rope_theta": 25000.0, "image_token_id": 3})

    old = {"model.language_model.": "language_model.model.", "lm_head": "language_model.lm_head"}
    resave(folder, {**old, "model.vision_embed": "vision_embed"}, "bfloat16")
    edit(folder / "config.json", flat)
    split_processor(folder, "FuyuImageProcessor")
    return folder


def split_processor(folder: Path, name: str) -> None:
    """Moves the image processor's settings to a file of their own, as older versions had them."""
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8"))
    images = values.pop("image_processor") | {"image_processor_type": name}
    processor.write_text(json.dumps(values), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")


VARIANTS: dict[str, Callable[[Path], Path]] = {
    "biased-in-shards": biased_in_shards,
    "old-names": old_names,
    "layers-side-by-side": layers_side_by_side,
    "older-processor": older_processor,
    "flat-qwen2-vl": flat_qwen,
    "flat-qwen2.5-vl": lambda folder: flat_qwen(folder, partial(qwen2_5_vl, window=8)),
    # No size is a multiple of eight, as the attention kernel would have it.
    "narrow-heads": lambda folder: llava(
        folder, hidden_size=40, intermediate_size=70, num_attention_heads=4
    ),
    "gemma2": lambda folder: llava(folder, text="gemma2", head_dim=24, sliding_window=16),
    "mistral-yarn": lambda folder: llava(
        folder,
        text="mistral",
        tie_word_embeddings=True,
        num_attention_heads=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    # Its heads share no keys, though its configuration says so.
    "gpt-neox": lambda folder: llava(folder, text="gpt_neox"),
    "llava-next-siglip-granite": lambda folder: llava_next(
        folder,
        tower="siglip",
        text="granite",
        vision_feature_layer=[-3, 1, -1],
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        tie_word_embeddings=True,
    ),
    "llava-next-llama": lambda folder: llava_next(folder, text="llama", num_key_value_heads=1),
    "llava-onevision-clip": lambda folder: llava_onevision(
        folder, tower="clip", text="llama", num_key_value_heads=1, tie_word_embeddings=True
    ),
    "granite4-vision-clip": lambda folder: granite4_vision(folder, tower="clip", rate="2/4"),
    "qwen2-vl-tied": tied_qwen2_vl,
    "smolvlm": lambda folder: idefics3(folder, kind="smolvlm", num_key_value_heads=1),
    "smolvlm-unsplit": lambda folder: idefics3(
        folder, kind="smolvlm", split=False, tie_word_embeddings=True
    ),
    "ruled": ruled,
    "hub-internvl": hub_internvl,
    "hub-gemma3": hub_gemma3,
    "paligemma2-chat": lambda folder: paligemma(
        folder,
        text="gemma2",
        template=LLAVA_TEMPLATE,
        layer_types=["full_attention", "sliding_attention"],
        attn_logit_softcapping=None,
    ),
    "cohere2-vision-one-tile": lambda folder: cohere2_vision(folder, most=1, seed=2),
    "bakllava": bakllava,
    # One projection for queries, keys and values, one for gate and up; half windows.
    "llava-phi3": lambda folder: llava(
        folder, text="phi3", num_key_value_heads=4, sliding_window=24, vocab_size=400
    ),
    "got-ocr2-plain": lambda folder: got_ocr2(
        folder,
        tower={"use_rel_pos": False, "use_abs_pos": False, "qkv_bias": False, "image_size": 54},
        num_key_value_heads=1,
        tie_word_embeddings=True,
    ),
    "deepseek-vl-qwen2": lambda folder: deepseek_vl(folder, text="qwen2", tie_word_embeddings=True),
    "janus-normed": lambda folder: janus(
        folder,
        system=False,
        tower={"use_qk_norm": True, "num_attention_heads": 1, "attention_bias": False, "depth": 3},
        images={"image_mean": [0.1, 0.9, 0.5], "resample": 2},
        num_key_value_heads=1,
    ),
    # An untied Qwen2, marks that are words, a wider projector, several layers back.
    "aya-vision-qwen2": lambda folder: aya_vision(
        folder, text="qwen2", marks=(), adapter=40, feature_layer=-2, tie_word_embeddings=False
    ),
    # Not quartered but brought to one size; the mark around pictures is another token.
    "idefics2-llama": lambda folder: idefics2(
        folder,
        text="llama",
        tie_word_embeddings=True,
        tower={"image_size": 70},
        perceiver={"num_key_value_heads": 4, "resampler_depth": 1},
        images={"size": {"height": 50, "width": 33}},
        named={"image_boundary_token": "<edge>"},
    ),
    # Tied, words chosen and not mixed, grids by their shape, a placeholder that is a token.
    "ovis2-llama": lambda folder: ovis2(
        folder,
        text="llama",
        tied=True,
        tower={"tokenize_function": "st_argmax", "mlp_bias": True, "qkv_bias": False},
        images={"use_covering_area_grid": False, "min_patches": 2, "max_patches": 4},
        specials=("<image>",),
    ),
    "hub-fuyu": hub_fuyu,
    # Its template says nothing of pictures: the processor writes them.
    "fuyu-chat": lambda folder: fuyu(
        folder, text="llama", template=FUYU_TEMPLATE, tie_word_embeddings=True
    ),
    # With no token that ends a turn, the processor writes "None"; no attention in the encoder.
    "chameleon-chat": lambda folder: chameleon(
        folder,
        template=CHAMELEON_TEMPLATE,
        named={"boi_token": "<reserved08706>", "image_token": "<image>"},
        codebook={"attn_type": "none", "attn_resolutions": None, "num_res_blocks": 2},
        swin_norm=True,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        num_key_value_heads=4,
    ),
    # Its experts are stored one by one.
    "internvl-qwen3-moe": lambda folder: internvl(
        folder,
        text="qwen3_moe",
        head_dim=16,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
    ),
    "internvl-qwen3": lambda folder: internvl(
        folder,
        text="qwen3",
        tied=True,
        head_dim=24,
        feature_layer=-2,
        tower={"use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False},
    ),
}
# Made for tests of their own.
SPECIAL: dict[str, Callable[[Path], Path]] = {
    "llava-onevision-plain": without_template,
    "said-tied-and-equal": lambda folder: said_tied(folder, equal=True),
    "said-tied-but-different": lambda folder: said_tied(folder, equal=False),
}
