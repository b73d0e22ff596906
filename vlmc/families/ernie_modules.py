"""ERNIE 4.5 VL's resampler and its experts of two kinds, for export.

Imported lazily by the family, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmc.families.grid_towers import OneSegment


class ResampledGridFeatures(nn.Module):
    """Tower and resampler on one picture: mirrors ``Ernie4_5_VLMoeModel.get_image_features``.

    A picture is a single frame, which the resampler reads as if it were two.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_tower
        self.resampler = model.resampler_model

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        patches = self.tower(
            pixel_values,
            grid_thw=None,
            position_ids=patch_positions,
            cu_seqlens=OneSegment(pixel_values.shape[0]),
            max_seqlen=None,
        ).last_hidden_state
        resampler = self.resampler
        rows = resampler.spatial_linear(patches.reshape(-1, resampler.spatial_dim))
        rows = resampler.temporal_linear(torch.cat([rows, rows], dim=-1))
        features: Tensor = resampler.after_norm(resampler.mlp(rows))
        return features


def experts_of_each(
    block: Any, hidden_states: Tensor, moe_mm_token_type_ids: Tensor
) -> tuple[Tensor, None]:
    """``Ernie4_5_VLMoeMoeBlock.forward`` without parting the tokens: [B, S, H] -> the same.

    Both kinds of experts, which skip, are given all of them and choose none for those of the other.

    Args:
        block: The layer's experts.
        hidden_states: float [B, S, H].
        moe_mm_token_type_ids: Whether a token is a picture's, bool [B, S].
    """
    flat = hidden_states.flatten(0, 1)
    is_image = moe_mm_token_type_ids.flatten()[:, None]
    made = torch.zeros_like(flat)
    for part, others in ((block.text_moe, is_image), (block.vision_moe, ~is_image)):
        _, shares, chosen = part.gate(flat)
        made = made + part.experts(flat, torch.where(others, -1, chosen), shares)
    made = made.reshape(hidden_states.shape)
    if block.shared_experts is not None:
        made = made + block.shared_experts(hidden_states)
    return made, None
