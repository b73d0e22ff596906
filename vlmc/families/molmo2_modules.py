"""Molmo 2's vision side for export: a tower on crops, and patches pooled by attention.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# The score of a patch that is not there; far below any other.
_UNSEEN = torch.finfo(torch.float32).min


class PooledImageFeatures(nn.Module):
    """Tower and adapter of one picture's crops, pooled where the host says.

    Mirrors ``Molmo2Model.get_image_features`` and ``Molmo2Adapter``. The pooling attends across,
    from one query to a few patches: it stays plain products. Its configuration is changed for good.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        model.model.multi_modal_projector.image_pooling_2d.config._attn_implementation = "eager"

    def forward(self, pixel_values: Tensor, token_patches: Tensor) -> Tensor:
        """image_features [tokens, hidden]."""
        tower, adapter = self.model.model.vision_tower, self.model.model.multi_modal_projector
        hidden = tower.patch_embedding(pixel_values) + tower.positional_embedding
        found = []
        for layer in tower.layers:
            hidden = layer(hidden, None)
            found.append(hidden)
        chosen = [found[at] for at in adapter.config.vision_feature_layer]
        patches = torch.cat(chosen, dim=-1).flatten(0, 1)
        there = token_patches >= 0
        pooled = patches[token_patches.clamp(min=0)] * there[..., None]
        count = there.sum(-1)[:, None, None].clamp(min=1)
        query = pooled.sum(-2, keepdim=True) / count
        unseen = torch.where(there, 0.0, _UNSEEN)[:, None, None]
        rows, _ = adapter.image_pooling_2d(query, pooled, attention_mask=unseen)
        features: Tensor = adapter.image_projector(rows.squeeze(1))
        return features
