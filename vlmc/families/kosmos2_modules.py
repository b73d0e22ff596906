"""KOSMOS-2's modules for export: its mask and its positions as the host knows them.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutput


class LatentFeatures(nn.Module):
    """Tower, and latent queries that read it once: pixel_values [1, 3, S, S].

    Mirrors ``Kosmos2Model.get_image_features``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = model.image_to_text_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [latents, hidden]."""
        states = self.tower(pixel_values=pixel_values, return_dict=True).last_hidden_state
        states = nn.functional.normalize(self.tower.model.post_layernorm(states), dim=-1)
        features: Tensor = self.projection(states)[0][0]
        return features


class SinusoidalDecoder(nn.Module):
    """``Kosmos2TextTransformer``, which makes mask and positions of what it counts itself.

    Its mask is causal (``_make_causal_mask``): here the one that other models ask for. A padding
    token has no position, wherever it stands.
    """

    frequencies: Tensor

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.config = decoder.config
        self.layers = decoder.layers
        self.norm = decoder.layer_norm
        self.scale = decoder.embed_scale
        self.pad = decoder.embed_positions.padding_idx
        self.width = decoder.embed_positions.embedding_dim
        # As ``Kosmos2TextSinusoidalPositionalEmbedding.get_embedding`` has them.
        half = self.width // 2
        step = math.log(10000) / (half - 1)
        with torch.utils._python_dispatch._disable_current_modes():
            frequencies = torch.exp(torch.arange(half, dtype=torch.int64).float() * -step)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(
        self,
        *,
        token_ids: Tensor,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        **_: Any,
    ) -> BaseModelOutput:
        """As ``Kosmos2TextTransformer.forward``, with token_ids and position_ids [B, S]."""
        angles = position_ids[..., None].float() * self.frequencies
        places = torch.cat([angles.sin(), angles.cos()], dim=-1)
        if self.width % 2:
            places = nn.functional.pad(places, (0, 1))
        places = torch.where((token_ids == self.pad)[..., None], 0.0, places)
        hidden = inputs_embeds * self.scale + places
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=past_key_values,
        )
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, past_key_values=past_key_values)
        return BaseModelOutput(last_hidden_state=self.norm(hidden))
