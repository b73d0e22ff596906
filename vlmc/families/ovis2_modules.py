"""The tower of Ovis 2, for export.

Imported lazily by the family, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MarkedTileFeatures(nn.Module):
    """As ``TiledImageFeatures``, with the rows of the tokens around a picture's tiles behind."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens + marks, hidden]."""
        made = self.model.get_image_features(pixel_values, return_dict=True)
        return torch.cat([made.pooler_output.flatten(0, 1), made.visual_indicator_features])
