"""Small random checkpoints as Hugging Face folders, made in the test that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.checkpoints.anyres import granite4_vision, llava_next, llava_onevision
from tests.checkpoints.aria import aria
from tests.checkpoints.bidirectional import gemma3, llama4, paligemma
from tests.checkpoints.cosmos import cosmos3_edge
from tests.checkpoints.delta import qwen3_5
from tests.checkpoints.ernie import ernie4_5_vl_moe
from tests.checkpoints.fixed import (
    deepseek_vl,
    deepseek_vl_hybrid,
    janus,
    llava,
    video_llava,
    vipllava,
)
from tests.checkpoints.glm_moe import glm4v_moe
from tests.checkpoints.hunyuan import hunyuan_vl
from tests.checkpoints.hyperclova import hyperclovax_vision_v2
from tests.checkpoints.idefics2 import idefics2
from tests.checkpoints.kimi import kimi_k25
from tests.checkpoints.kin import (
    cohere_compass,
    exaone4_5,
    granite_docling,
    lfm3_vl,
    qianfan_ocr,
    video_llama_3,
)
from tests.checkpoints.minicpm import minicpmv, minicpmv4_7
from tests.checkpoints.native import (
    glm4v,
    glm_ocr,
    lfm2_vl,
    paddleocr_vl,
    pixtral,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)
from tests.checkpoints.ocr import lighton_ocr, pp_chart2table
from tests.checkpoints.omni import qwen2_5_omni_thinker
from tests.checkpoints.omni3 import qwen3_omni_moe_thinker
from tests.checkpoints.ovis2 import ovis2
from tests.checkpoints.phi import phi4_multimodal
from tests.checkpoints.pooled import gemma4, molmo2
from tests.checkpoints.queries import blip_2, instructblip, kosmos2
from tests.checkpoints.streams import gemma3n
from tests.checkpoints.tiles import aya_vision, cohere2_vision, got_ocr2, idefics3, internvl
from tests.checkpoints.timm_towers import fast_vlm, perception_lm
from tests.checkpoints.towerless import chameleon, fuyu
from tests.checkpoints.unified import gemma4_unified

# Queries grow past every sixteenth token.
SCALED = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}

MAKERS: dict[str, Callable[[Path], Path]] = {
    "llava-clip-llama": llava,
    "llava-siglip-mistral": lambda folder: llava(
        folder, tower="siglip", text="mistral", head_dim=16, sliding_window=24
    ),
    "llava-next-clip-mistral": llava_next,
    "llava-next-video": lambda folder: llava_next(
        folder, video=True, text="llama", vision_feature_layer=[-2, 0]
    ),
    "llava-onevision": llava_onevision,
    "fast-vlm": fast_vlm,
    "granite4-vision": granite4_vision,
    "vipllava": vipllava,
    "video-llava": video_llava,
    "internvl": internvl,
    "qianfan-ocr": qianfan_ocr,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen2.5-omni": qwen2_5_omni_thinker,
    "exaone4.5": exaone4_5,
    "hyperclovax-vision-v2": hyperclovax_vision_v2,
    "qwen3-vl": qwen3_vl,
    "qwen3-vl-moe": lambda folder: qwen3_vl(folder, experts=5),
    "qwen3-omni": qwen3_omni_moe_thinker,
    "cohere-compass": cohere_compass,
    "cosmos3-edge": cosmos3_edge,
    "qwen3.5": qwen3_5,
    "qwen3.5-moe": lambda folder: qwen3_5(folder, experts=5, seed=2),
    "glm4v": glm4v,
    "glm4v-4.6": lambda folder: glm4v(folder, kind="Glm46V", num_key_value_heads=1),
    "glm4v-ga": lambda folder: glm4v(folder, kind="Glmga", num_key_value_heads=1, seed=2),
    "glm4v-moe": glm4v_moe,
    "glm-ocr": glm_ocr,
    "ernie4.5-vl": ernie4_5_vl_moe,
    "hunyuan-vl": hunyuan_vl,
    "lfm2-vl": lfm2_vl,
    "lfm3-vl": lfm3_vl,
    "minicpm-v4.6": lambda folder: minicpmv(folder, seed=4),
    "minicpm-v4.6-4x": lambda folder: minicpmv(folder, mode="4x", tie_word_embeddings=True),
    "minicpm-v4.7": minicpmv4_7,
    "paddleocr-vl": paddleocr_vl,
    "video-llama-3": video_llama_3,
    "kimi-k2.5": kimi_k25,
    "pixtral": pixtral,
    # transformers fails on a picture of a single merged patch.
    "mistral3": lambda folder: pixtral(folder, merge=2, patch=2),
    "idefics2": lambda folder: idefics2(folder, split=True),
    "mistral3-ministral3": lambda folder: pixtral(
        folder, merge=2, patch=2, text="ministral3", rope_parameters=SCALED
    ),
    "lighton-ocr": lighton_ocr,
    "idefics3": idefics3,
    "aria": aria,
    "granite-docling": granite_docling,
    "ovis2": ovis2,
    "gemma3": gemma3,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    # As the larger ones: experts, no shared keys, pictures seen both ways; a tower of sounds too.
    "gemma4-experts": lambda folder: gemma4(
        folder,
        sounds=True,
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma4-unified": gemma4_unified,
    "paligemma": paligemma,
    "paligemma2": lambda folder: paligemma(folder, text="gemma2"),
    "llama4": llama4,
    "perception-lm": perception_lm,
    "phi4-multimodal": phi4_multimodal,
    "molmo2": molmo2,
    "aya-vision": aya_vision,
    "cohere2-vision": cohere2_vision,
    "deepseek-vl": deepseek_vl,
    "deepseek-vl-hybrid": deepseek_vl_hybrid,
    "got-ocr2": got_ocr2,
    "pp-chart2table": pp_chart2table,
    "janus": janus,
    "blip-2": blip_2,
    "instructblip": instructblip,
    "fuyu": fuyu,
    "kosmos-2": kosmos2,
    "chameleon": chameleon,
}
