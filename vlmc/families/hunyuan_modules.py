"""The tower of HunYuan-VL, for export.

Imported lazily by the family, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmc.families.towers import OneSegment


class RowEndedFeatures(nn.Module):
    """Tower and merger on one picture: mirrors ``HunYuanVLVisionTransformer``.

    Patches lie in merged blocks here, so that each block is a picture of its own to the merger's
    convolution; the host says where its rows, and the marks around them, go.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(
        self, pixel_values: Tensor, table_rows: Tensor, table_weights: Tensor, packing: Tensor
    ) -> Tensor:
        """image_features [tokens, hidden]."""
        embed, merger = self.tower.embeddings, self.tower.patch_merger
        size = embed.patch_size
        patches = embed.patch_embedding(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        # The table's first row is a class token's.
        places = embed.position_embedding(table_rows + 1) * table_weights[..., None]
        hidden = (patches + places.sum(1))[None]
        for layer in self.tower.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                cu_seqlens=OneSegment(pixel_values.shape[0]),
                max_seqlen=None,
            )
        side = merger.spatial_merge_size
        blocks = merger.before_rms(hidden).reshape(-1, side, side, hidden.shape[-1])
        merged = merger.proj_conv(blocks.permute(0, 3, 1, 2))
        merged = merger.proj_out(merger.proj_act(merged)).flatten(1)
        rows = merger.mlp(torch.cat([merged, merger.image_newline[None]]))
        rows = torch.cat([rows, merger.image_begin[None], merger.image_end[None]])
        features: Tensor = merger.after_rms(rows)[packing]
        return features
