"""The tower and connector of Idefics2, for export.

Imported lazily by the family, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Scores of empty slots; far below any other, and a number in float16 too.
_UNSEEN = -1e4


class ResampledFeatures(nn.Module):
    """Idefics2's tower and perceiver on the parts of one picture, of any number of patches each.

    Mirrors ``Idefics2Model.get_image_features``: every part is a row of a batch, its empty slots
    masked.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.connector = model.connector
        side = self.tower.embeddings.num_patches_per_side
        # As ``Idefics2VisionEmbeddings.forward`` computes them: nearly, not exactly, even.
        ends = torch.arange(1 / side, 1.0, 1 / side)
        self.ends: Tensor
        self.register_buffer("ends", ends, persistent=False)

    def forward(self, pixel_values: Tensor, patch_places: Tensor, tile_patches: Tensor) -> Tensor:
        """image_features [parts * latents, hidden]."""
        embed = self.tower.embeddings
        size = embed.patch_size
        patches = embed.patch_embedding(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        bins = (patch_places[..., None] >= self.ends).sum(-1)
        places = bins[:, 0] * embed.num_patches_per_side + bins[:, 1]
        hidden = (patches + embed.position_embedding(places))[tile_patches.clamp(min=0)]
        unseen = torch.where(tile_patches < 0, _UNSEEN, 0.0)[:, None, None]
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=unseen).last_hidden_state
        context = self.connector.modality_projection(self.tower.post_layernorm(hidden))
        resampler = self.connector.perceiver_resampler
        latents = resampler.latents.expand(tile_patches.shape[0], -1, -1)
        mask = torch.nn.functional.pad(unseen, (0, resampler.n_latents))
        for layer in resampler.layers:
            latents = layer(latents, context, attention_mask=mask)
        features: Tensor = resampler.norm(latents)
        return features.flatten(0, 1)
