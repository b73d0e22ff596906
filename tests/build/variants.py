"""Checkpoints as they are found in the wild: other decoders, other shapes, older ways to save.

Each combines several peculiarities, because a build costs seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.build.edits import Json, edit, resave, split_processor
from tests.build.older import (
    bakllava,
    biased_in_shards,
    flat_qwen,
    layers_side_by_side,
    old_names,
    older_processor,
    said_tied,
    tied_qwen2_vl,
    without_template,
)
from tests.build.relatives import RELATIVES
from tests.checkpoints.anyres import granite4_vision, llava_next, llava_onevision
from tests.checkpoints.bidirectional import gemma3, paligemma
from tests.checkpoints.ernie import ernie4_5_vl_moe
from tests.checkpoints.fixed import deepseek_vl, janus, llava
from tests.checkpoints.hunyuan import hunyuan_vl
from tests.checkpoints.idefics2 import idefics2
from tests.checkpoints.native import qwen2_5_vl
from tests.checkpoints.ovis2 import ovis2
from tests.checkpoints.parts import LLAVA_TEMPLATE
from tests.checkpoints.tiles import aya_vision, cohere2_vision, got_ocr2, idefics3, internvl
from tests.checkpoints.timm_towers import fast_vlm, perception_lm
from tests.checkpoints.towerless import chameleon, fuyu

FUYU_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}\n{% endif %}{% endfor %}{% endfor %}"
)


CHAMELEON_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}"
)


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
    # Latent attention: values narrower than keys, of which a part is rotated; experts in groups.
    "llava-deepseek-v3": lambda folder: llava(
        folder,
        text="deepseek_v3",
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
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
    # A tower in branches, as it was trained; channels weighed; no template.
    "fast-vlm-branches": lambda folder: fast_vlm(
        folder,
        architecture="fastvit_mci0.apple_mclip",
        tower={"layers": [1, 2, 1, 1], "embed_dims": [8, 16, 16, 32], "drop_path_rate": 0.1},
        cell=32,
        template=None,
        text="llama",
        tie_word_embeddings=True,
    ),
    # The larger one's tower, which has no class token; features not averaged; no tiles.
    "perception-lm-whole": lambda folder: perception_lm(
        folder,
        architecture="vit_pe_core_gigantic_patch14_448.fb",
        tower={"class_token": False, "mlp_ratio": 1.5, "use_post_transformer_norm": None},
        pooling=1,
        images={"vision_input_type": "vanilla"},
        text="qwen2",
        tie_word_embeddings=True,
    ),
    # Five rows of patches averaged to two; a normalized end; learned positions for patches alone.
    "perception-lm-odd": lambda folder: perception_lm(
        folder,
        architecture="vit_pe_lang_large_patch14_448",
        tower={
            "img_size": [35, 35],
            "init_values": None,
            "use_post_transformer_norm": True,
            "no_embed_class": True,
            "use_pre_transformer_norm": False,
        },
        images={"max_num_tiles": 2},
        num_key_value_heads=1,
    ),
    "granite4-vision-clip": lambda folder: granite4_vision(folder, tower="clip", rate="2/4"),
    # Three axes, frequencies as they are; another table of positions.
    "hunyuan-three-axes": lambda folder: hunyuan_vl(
        folder,
        rotary={"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [3, 3, 2]},
        tower={"interpolate_mode": "bicubic", "max_image_size": 70},
        tie_word_embeddings=False,
        num_key_value_heads=4,
    ),
    "qwen2-vl-tied": tied_qwen2_vl,
    # Experts of both kinds are alike, and a layer without any comes between.
    "ernie-alike": lambda folder: ernie4_5_vl_moe(
        folder,
        inner=(24, 24),
        tie_word_embeddings=False,
        use_bias=True,
        moe_num_shared_experts=0,
        mlp_layer_types=["sparse", "dense", "sparse"],
        num_key_value_heads=4,
    ),
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
    **RELATIVES,
}
# Made for tests of their own.
SPECIAL: dict[str, Callable[[Path], Path]] = {
    "llava-onevision-plain": without_template,
    "said-tied-and-equal": lambda folder: said_tied(folder, equal=True),
    "said-tied-but-different": lambda folder: said_tied(folder, equal=False),
}
