"""LFM3-VL's tower for export. Imported lazily, because it needs torch at its top."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmc.families.grid_towers import OneSegment


class RasterImageFeatures(nn.Module):
    """A tower of convolutions and attention, and its projector, on one picture in flat patches.

    Mirrors ``Lfm3VlVisionModel.forward``, whose convolutions loop over pictures of known sizes:
    here the host says which patch lies where.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, grid_patches: Tensor
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower = self.model.model.vision_tower
        hidden = tower.embedding_norm(tower.patch_embed(pixel_values))
        rotation = tower.rotary_pos_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        # Row by row, as the convolutions' outputs lie.
        places = patch_positions[:, 0] * grid_patches.shape[1] + patch_positions[:, 1]
        for layer in tower.layers:
            normed = layer.operator_norm(hidden)
            if layer.is_attention_layer:
                mixed, _ = layer.self_attn(normed, whole, rotation)
            else:
                mixed = convolved(layer.conv, normed, grid_patches, places)
            hidden = hidden + mixed
            hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
        features: Tensor = self.model.model.multi_modal_projector(hidden)
        return features


def convolved(conv: Any, hidden: Tensor, grid_patches: Tensor, places: Tensor) -> Tensor:
    """``Lfm3VlVisionShortConv`` on one picture.

    Args:
        conv: The module.
        hidden: A state of each patch [P, C].
        grid_patches: Which patch lies where, int64 [rows, columns].
        places: Where each patch lies, counted row by row, int64 [P].

    Returns:
        [P, C].
    """
    before, after, values = conv.in_proj(hidden).chunk(3, dim=-1)
    grid = (before * values)[grid_patches].permute(2, 0, 1).unsqueeze(0)
    rows = conv.spatial_conv(grid)[0].flatten(1).transpose(0, 1)
    mixed: Tensor = conv.out_proj(after * rows[places])
    return mixed
