"""MiniCPM-V's tower and its mergers for export. Imported lazily: it needs torch at its top."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from vlmc.families.grid_towers import OneSegment
from vlmc.families.window_towers import windowed_attention

_SLICED = "sliced"


class SlicedImageFeatures(nn.Module):
    """A tower on the slices of one picture, in flat patches, those of a feature row together.

    Mirrors ``MiniCPMV4_6VisionModel.forward`` and ``MiniCPMV4_6Merger``: a layer's attention, which
    loops over slices there, sees every slice as a row of a batch, and so does the merger inside the
    tower its windows of 2 x 2 patches. The layers are changed for good.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.merger = model.model.vision_tower, model.model.merger
        self.merged_after = -1
        if model.config.downsample_mode != "4x":
            self.merged_after = self.tower.config.insert_layer_id
        self.inner = self.tower.config._attn_implementation
        AttentionInterface.register(_SLICED, windowed_attention)
        config = copy(self.tower.config)
        config._attn_implementation = _SLICED
        for layer in self.tower.encoder.layers:
            layer.self_attn.config = config
        side = self.tower.embeddings.num_patches_per_side
        # As ``get_vision_nearest_position_ids`` computes them: nearly, not exactly, even.
        ends = torch.arange(1 / side, 1.0, 1 / side)
        self.ends: Tensor
        self.register_buffer("ends", ends, persistent=False)

    def forward(
        self,
        pixel_values: Tensor,
        patch_places: Tensor,
        tile_patches: Tensor,
        patch_slots: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        embed = self.tower.embeddings
        size = embed.patch_size
        hidden = embed.patch_embedding(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        buckets = (patch_places[..., None] >= self.ends).sum(-1)
        places = buckets[:, 0] * embed.num_patches_per_side + buckets[:, 1]
        hidden = (hidden + embed.position_embedding(places)).unsqueeze(0)
        for number, layer in enumerate(self.tower.encoder.layers):
            hidden = layer(
                hidden,
                attention_mask=None,
                cu_seqlens=OneSegment(hidden.shape[1]),
                max_seqlen=None,
                window_patches=tile_patches,
                patch_slots=patch_slots,
                inner=self.inner,
            )
            if number == self.merged_after:
                hidden = windows_merged(self.tower.vit_merger, hidden)
                # A window's patches are neighbours, and so are their slots.
                first = tile_patches[:, ::4]
                tile_patches = torch.where(first < 0, first, first // 4)
                patch_slots = patch_slots[::4] // 4
        rows = self.tower.post_layernorm(hidden)[0]
        features: Tensor = self.merger.mlp[0](rows.reshape(-1, 4 * rows.shape[-1]))
        return features


def windows_merged(merger: Any, hidden: Tensor) -> Tensor:
    """``MiniCPMV4_6ViTWindowAttentionMerger`` on windows of four neighbours: [1, P, C] to P / 4."""
    windows = hidden.reshape(-1, 4, hidden.shape[-1])
    attended, _ = merger.self_attn(
        merger.layer_norm1(windows), cu_seqlens=OneSegment(4), max_seqlen=None
    )
    windows = windows + attended
    joined = merger.linear_1(merger.pre_norm(windows.flatten(1)))
    merged: Tensor = merger.linear_2(merger.act(joined)) + windows.mean(dim=1)
    return merged.unsqueeze(0)
