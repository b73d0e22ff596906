"""Other checkpoints of models that are near relatives of another family's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.build.edits import Json, edit, resave
from tests.checkpoints.cosmos import cosmos3_edge
from tests.checkpoints.hyperclova import hyperclovax_vision_v2
from tests.checkpoints.kimi import kimi_k25
from tests.checkpoints.kin import (
    cohere_compass,
    exaone4_5,
    granite_docling,
    lfm3_vl,
    qianfan_ocr,
    video_llama_3,
)
from tests.checkpoints.ocr import pp_chart2table
from tests.checkpoints.omni import qwen2_5_omni
from tests.checkpoints.omni3 import qwen3_omni_moe
from tests.checkpoints.unified import gemma4_unified


def hub_hyperclova(folder: Path) -> Path:
    """As it was released: the kind of the whole model that the tower is from; tied."""
    hyperclovax_vision_v2(folder, tied=True, use_post_norm=False, num_key_value_heads=4)
    resave(folder, {}, "bfloat16")

    def first_name(config: Json) -> None:
        config["vision_config"]["model_type"] = "qwen2_5_vl"
        del config["text_config"]["attention_multiplier"]

    edit(folder / "config.json", first_name)
    return folder


def hub_exaone(folder: Path) -> Path:
    """As it was released: the decoder's first name, rotary positions in every layer, tied."""
    kinds = ["full_attention"] * 2
    exaone4_5(folder, tied=True, num_hidden_layers=2, sliding_window=None, layer_types=kinds)

    def first_name(config: Json) -> None:
        config["text_config"]["model_type"] = "exaone4_5_text"

    edit(folder / "config.json", first_name)
    return folder


def hub_cosmos(folder: Path) -> Path:
    """A tie that no weights know of, what draws pictures beside it, other sizes; bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    cosmos3_edge(
        folder,
        tower={"patch_size": 4, "num_patches": 81, "spatial_merge_size": 3, "hidden_act": "gelu"},
        images={"patch_size": 4, "merge_size": 3, "resample": 2, "image_std": [0.3, 0.4, 0.5]},
        named={"tie_word_embeddings": True},
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        hidden_act="silu",
        num_key_value_heads=4,
    )
    held = load_file(folder / "model.safetensors")
    held["model.language_model.norm_moe_gen.weight"] = torch.ones(64)
    held["model.language_model.layers.0.mlp_moe_gen.fc1.weight"] = torch.ones(96, 64)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    resave(folder, {}, "bfloat16")
    return folder


ROTARY = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 3, 3]}
RELATIVES: dict[str, Callable[[Path], Path]] = {
    # As the larger one: no fine route; wide pages have more tiles; a router that decides nothing.
    "granite-docling-dense": lambda folder: granite_docling(
        folder,
        tied=True,
        tower={"deepstack_visual_indexes": [0, 1, 2], "scale_factor": 2},
        images={"max_patches": 2, "dense_max_patches": 12, "dense_min_aspect": 1.2}
        | {"dense_max_scale": 0.7, "dense_max_aspect": 9.0},
        named={"density_router_hidden_size": 20},
    ),
    "hub-cosmos3-edge": hub_cosmos,
    "hub-exaone4.5": hub_exaone,
    "hub-hyperclova": hub_hyperclova,
    # transformers saves its queries, keys and values as it does the tower's.
    "kimi-llama": lambda folder: kimi_k25(
        folder,
        text="llama",
        heads=2,
        num_key_value_heads=4,
        merge=3,
        tie_word_embeddings=True,
        images={"max_patches": 100, "resample": 2, "image_mean": [0.4, 0.5, 0.6]},
    ),
    # A causal mask alone, the last layers reading others' keys; a head of its own, and sounds.
    "gemma4-unified-shared": lambda folder: gemma4_unified(
        folder,
        sounds=True,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        use_bidirectional_attention=None,
        attention_k_eq_v=False,
        final_logit_softcapping=None,
        tie_word_embeddings=False,
    ),
    "pp-chart2table-tied": lambda folder: pp_chart2table(
        folder, tied=True, images={"resample": 2, "do_convert_rgb": None}, num_key_value_heads=1
    ),
    "hub-qwen2.5-omni": qwen2_5_omni,
    "hub-qwen3-omni": qwen3_omni_moe,
    "video-llama-3-merged": lambda folder: video_llama_3(
        folder, text="llama", merge=2, tie_word_embeddings=True
    ),
    "video-llama-3-odd": lambda folder: video_llama_3(folder, text="qwen3", merge=3, patch=4),
    # Positions everywhere, in parts of their own; nothing scaled; more features than layers.
    "cohere-compass-full": lambda folder: cohere_compass(
        folder,
        tied=True,
        logit_scale=None,
        num_hidden_layers=2,
        layer_types=["full_attention"] * 2,
        rope_parameters={"full_attention": ROTARY},
        tower={"deepstack_visual_indexes": [0, 1, 2]},
    ),
    "lfm3-vl-plain": lambda folder: lfm3_vl(
        folder,
        tied=True,
        kernel=5,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
        conv_L_cache=3,
        conv_bias=True,
        use_sandwich_norm=False,
        use_attention_gate=False,
    ),
    "qianfan-ocr-llama": lambda folder: qianfan_ocr(
        folder,
        text="llama",
        head_dim=16,
        word="<picture>",
        tower={"use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False},
        named={"tie_word_embeddings": True, "vision_feature_layer": -2},
    ),
}
