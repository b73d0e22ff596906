"""Vision wrappers of families whose pictures are read by queries: a Q-Former, or latent ones.

Imported lazily by the families' ``vision`` functions, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class QFormerFeatures(nn.Module):
    """Tower, Q-Former and projection on one picture: pixel_values [1, 3, S, S].

    Mirrors ``Blip2ForConditionalGeneration.get_image_features``, without the mask of the tower's
    patches: all of one picture are seen.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [queries, hidden]."""
        model = self.model
        patches = model.vision_model(pixel_values=pixel_values, return_dict=True).last_hidden_state
        read = model.qformer(
            query_embeds=model.query_tokens, encoder_hidden_states=patches, return_dict=True
        ).last_hidden_state
        features: Tensor = model.language_projection(read)[0]
        return features
