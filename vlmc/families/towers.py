"""Vision wrappers families share: a picture or its tiles of fixed size in, image features out.

Imported lazily by the families' ``vision`` functions, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FixedImageFeatures(nn.Module):
    """``get_image_features`` on one picture of fixed size: pixel_values [1, 3, S, S]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tokens, hidden]."""
        features = self.model.get_image_features(pixel_values, return_dict=True).pooler_output
        return torch.cat(tuple(features), dim=0)


class TiledImageFeatures(nn.Module):
    """``get_image_features`` on the tiles of one picture: pixel_values [tiles, 3, S, S]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden], tile after tile."""
        features: Tensor = self.model.get_image_features(
            pixel_values, return_dict=True
        ).pooler_output
        return features.flatten(0, 1)


class DeepTileFeatures(nn.Module):
    """A tower with its connector on the tiles of one picture, with deep-stack features.

    Args:
        tower: Its output has them, ``pooler_output`` and ``deepstack_features``.
        deepstack: How many of these are read.
    """

    def __init__(self, tower: nn.Module, deepstack: int) -> None:
        super().__init__()
        self.tower = tower
        self.deepstack = deepstack

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """image_features [tiles * tokens, hidden], deepstack_features [..., deepstack, hidden]."""
        out = self.tower(pixel_values)
        features: Tensor = out.pooler_output
        if not self.deepstack:
            return features
        return features, torch.stack(out.deepstack_features[: self.deepstack], dim=1)


class FullTileFeatures(nn.Module):
    """Tower and connector of Idefics3 on the full tiles of one picture: [tiles, 3, S, S].

    transformers derives places and mask from a patch mask; where all is true the places are
    constants, and no mask is needed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.connector = model.connector
        side = self.tower.embeddings.num_patches_per_side
        self.register_buffer("places", _patch_places(side), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden]."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = patches + embeddings.position_embedding(self.places)
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        features: Tensor = self.connector(self.tower.post_layernorm(hidden))
        return features.flatten(0, 1)


def _patch_places(side: int) -> Tensor:
    """Position of every patch of a full tile, int64 [side * side].

    Mirrors ``Idefics3VisionEmbeddings.forward`` to the rounding: the buckets are nearly, not
    exactly, 0 to side - 1.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    step = 1.0 / torch.tensor([side])
    places = torch.clamp(torch.arange(side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    buckets = torch.bucketize(places, boundaries, right=True)
    return (buckets[:, None] * side + buckets[None, :]).flatten()
