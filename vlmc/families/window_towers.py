"""A tower whose layers attend inside windows that need not be equal (Qwen2.5-VL).

Imported lazily, as ``towers.py`` is.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmc.families.grid_towers import UNSEEN, OneSegment

_WINDOWED = "windowed"


def windowed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    window_patches: Tensor,
    patch_slots: Tensor,
    inner: str,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside windows, by the attention function that is registered as ``inner``.

    Every window is a row of a batch, its empty slots masked: so windows need not be equal, and
    how many patches each has is data.

    Args:
        module: The attention module.
        query: [1, heads, P, head_dim], already rotated.
        key: As ``query``.
        value: As ``query``.
        attention_mask: None.
        window_patches: The patches of each window, int64 [windows, slots]; -1: none.
        patch_slots: The slot of each patch, int64 [P].
        inner: A name in ``AttentionInterface``.
        kwargs: For that function.

    Returns:
        [1, P, heads, head_dim], and no weights.
    """
    seen = torch.where(window_patches < 0, UNSEEN, 0.0).to(query.dtype)
    rows = window_patches.clamp(min=0)
    query, key, value = (x[0].transpose(0, 1)[rows].transpose(1, 2) for x in (query, key, value))
    attend = AttentionInterface().get_interface(inner, sdpa_attention_forward)
    out, _ = attend(module, query, key, value, seen[:, None, None], **kwargs)
    return out.flatten(0, 1)[patch_slots].unsqueeze(0), None


class WindowedImageFeatures(nn.Module):
    """A native-resolution tower on one picture, most of whose layers attend inside windows.

    Mirrors ``Qwen2_5_VisionTransformerPretrainedModel.forward`` but for its sorting of patches by
    window: attention and merger give the same in any order that keeps merged patches together.
    The layers of ``visual`` are changed for good.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.inner = visual.config._attn_implementation
        AttentionInterface.register(_WINDOWED, windowed_attention)
        config = copy(visual.config)
        config._attn_implementation = _WINDOWED
        for layer, block in enumerate(visual.blocks):
            if layer not in visual.fullatt_block_indexes:
                block.attn.config = config

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        window_patches: Tensor,
        patch_slots: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        hidden = self.visual.patch_embed(pixel_values)
        windows = {
            "window_patches": window_patches,
            "patch_slots": patch_slots,
            "inner": self.inner,
        }
        rotation = self.visual.rotary_pos_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        for layer, block in enumerate(self.visual.blocks):
            given = {} if layer in self.visual.fullatt_block_indexes else windows
            hidden = block(hidden, cu_seqlens=whole, position_embeddings=rotation, **given)
        features: Tensor = self.visual.merger(hidden)
        return features


class ProjectedWindowedFeatures(nn.Module):
    """The same, and a projection of what its merger makes.

    Mirrors ``HyperCLOVAXVisionV2Model.get_image_features``.
    """

    def __init__(self, visual: Any, projector: nn.Module) -> None:
        super().__init__()
        self.tower = WindowedImageFeatures(visual)
        self.projector = projector

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        window_patches: Tensor,
        patch_slots: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        merged = self.tower(pixel_values, patch_positions, window_patches, patch_slots)
        features: Tensor = self.projector(merged)
        return features
