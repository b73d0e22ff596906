"""The hybrid DeepSeek-VL's two towers for export; imported lazily, because it needs torch."""

from typing import Any

from torch import Tensor, nn


class TwoSizesFeatures(nn.Module):
    """``get_image_features`` on one picture in two sizes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, high_res_pixel_values: Tensor) -> Tensor:
        """image_features [tokens, hidden] of [1, 3, S, S] and [1, 3, L, L]."""
        made = self.model.get_image_features(pixel_values, high_res_pixel_values, return_dict=True)
        features: Tensor = made.pooler_output
        return features.flatten(0, 1)
