"""A small GLM-4.5V: experts in groups, shared ones, a first layer without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.checkpoints.native import GLM_SPECIALS, GLM_TEMPLATE
from tests.checkpoints.parts import PATCH, randomize, save_parts, text_config, tokenizer


def glm4v_moe(folder: Path, *, seed: int = 1, **values: Any) -> Path:
    """A GLM-4.5V of eight experts in four groups, whose choice is corrected and scaled."""
    import torch
    import transformers as hf

    words = tokenizer(GLM_SPECIALS, bos=None, eos="<|endoftext|>", template=GLM_TEMPLATE)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    rotary["mrope_section"] = [2, 2, 1]
    settled = {
        "eos_token_id": 0,
        "head_dim": 20,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "n_shared_experts": 2,
        "moe_intermediate_size": 24,
        "routed_scaling_factor": 1.5,
        "rope_parameters": rotary,
    }
    ids = ("image", "image_start", "image_end", "video", "video_start", "video_end")
    named = {
        f"{name}_token_id": GLM_SPECIALS.index(token)
        for name, token in zip(ids, GLM_SPECIALS[5:], strict=True)
    }
    config = hf.Glm4vMoeConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_heads": 3,
            "patch_size": PATCH,
            "image_size": 5 * PATCH,
        },
        text_config=text_config("glm4v_moe_text", len(words), **{**settled, **values}),
        **named,
    )
    images = hf.Glm4vImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": 8 * 14 * 14, "longest_edge": 80 * 14 * 14}
    )
    model = randomize(hf.Glm4vMoeForConditionalGeneration(config), seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.model.language_model.layers[settled["first_k_dense_replace"] :]:
        bias = layer.mlp.gate.e_score_correction_bias
        bias.copy_(torch.randn(bias.shape, generator=generator) * 0.1)
    return save_parts(model, images, words, folder)
