"""Kimi K2.5's modules for export: a tower on one picture, and what its decoder reads of tokens.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmc.families.grid_towers import OneSegment


class KimiImageFeatures(nn.Module):
    """Tower and projection of one picture in flat patches of merged-block order.

    Mirrors ``Kimi_K25Model.get_image_features``: the patches that ``temporal_merge_index`` puts
    together are neighbours, and the one frame adds nothing for its time.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        table_rows: Tensor,
        table_weights: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower, project = self.model.model.vision_tower, self.model.model.mm_projector
        embed = tower.patch_embed
        size = embed.proj.kernel_size
        hidden = embed.proj(pixel_values.reshape(-1, 3, *size)).flatten(1)
        table = embed.pos_emb.position_embeddings.flatten(0, 1)
        # One tap at a time: all at once would take as many times the memory.
        for tap in range(table_rows.shape[1]):
            rows = nn.functional.embedding(table_rows[:, tap], table)
            hidden = hidden + rows * table_weights[:, tap : tap + 1]
        rotation = tower.rotary_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        for layer in tower.layers:
            hidden = layer(hidden, cu_seqlens=whole, max_seqlen=None, position_embeddings=rotation)
        merge = tower.merge_kernel_size[0] * tower.merge_kernel_size[1]
        merged = tower.final_layernorm(hidden).reshape(-1, merge, hidden.shape[-1])
        features: Tensor = project(merged).squeeze(1)
        return features


def token_inputs(model: Any, embeds: Tensor, ids: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """``inputs_embeds`` [B, S, H].

    Mirrors ``Kimi_K25Model.forward``: every placeholder, one in an answer too, is looked up as the
    first token.
    """
    config = model.config
    stray = ((ids == config.image_token_id) | (ids == config.video_token_id)) & ~is_image
    first = model.get_input_embeddings()(torch.zeros_like(ids[:1, :1]))
    return {"inputs_embeds": torch.where(stray[..., None], first, embeds)}
