"""The towers of Idefics2 and Aria, and what reads them, for export.

Imported lazily by the families, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Scores of empty slots; far below any other, and a number in float16 too.
_UNSEEN = -1e4


class PlacedPatches(nn.Module):
    """A tower on the parts of one picture, of any number of patches each.

    Mirrors ``Idefics2VisionTransformer`` and ``Idefics3VisionTransformer``, up to their last
    normalization: every part is a row of a batch, its empty slots masked.
    """

    def __init__(self, tower: Any, layers: int) -> None:
        """``layers``: of the encoder's, how many are run."""
        super().__init__()
        self.embeddings = tower.embeddings
        self.layers = tower.encoder.layers[:layers]
        side = tower.embeddings.num_patches_per_side
        # As ``Idefics2VisionEmbeddings.forward`` computes them: nearly, not exactly, even.
        ends = torch.arange(1 / side, 1.0, 1 / side)
        self.ends: Tensor
        self.register_buffer("ends", ends, persistent=False)

    def forward(
        self, pixel_values: Tensor, patch_places: Tensor, tile_patches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [parts, slots, width], and what is added to scores [parts, 1, 1, slots]."""
        embed = self.embeddings
        size = embed.patch_size
        patches = embed.patch_embedding(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        bins = (patch_places[..., None] >= self.ends).sum(-1)
        places = bins[:, 0] * embed.num_patches_per_side + bins[:, 1]
        hidden = (patches + embed.position_embedding(places))[tile_patches.clamp(min=0)]
        unseen = torch.where(tile_patches < 0, _UNSEEN, 0.0)[:, None, None]
        for layer in self.layers:
            hidden = layer(hidden, unseen)
        return hidden, unseen


class ResampledFeatures(nn.Module):
    """Idefics2's tower and perceiver: mirrors ``Idefics2Model.get_image_features``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = PlacedPatches(model.vision_model, len(model.vision_model.encoder.layers))
        self.post_layernorm = model.vision_model.post_layernorm
        self.connector = model.connector

    def forward(self, pixel_values: Tensor, patch_places: Tensor, tile_patches: Tensor) -> Tensor:
        """image_features [parts * latents, hidden]."""
        hidden, unseen = self.tower(pixel_values, patch_places, tile_patches)
        context = self.connector.modality_projection(self.post_layernorm(hidden))
        resampler = self.connector.perceiver_resampler
        latents = resampler.latents.expand(tile_patches.shape[0], -1, -1)
        mask = torch.nn.functional.pad(unseen, (0, resampler.n_latents))
        for layer in resampler.layers:
            latents = layer(latents, context, attention_mask=mask)
        features: Tensor = resampler.norm(latents)
        return features.flatten(0, 1)
