"""Aria's vision side and its layers of experts, for export.

Imported lazily by the family, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlmc.families.idefics2_modules import PlacedPatches


class QueriedFeatures(nn.Module):
    """Aria's tower and projector: mirrors ``AriaModel.get_image_features``.

    The projector looks up by a picture's filled size how many queries read it; patches that no
    mask hides are fewer, so the number is given.
    """

    def __init__(self, model: Any, queries: int) -> None:
        super().__init__()
        layers = len(model.vision_tower.encoder.layers)
        chosen = model.config.vision_feature_layer % (layers + 1)
        self.tower = PlacedPatches(model.vision_tower, chosen)
        self.projector = model.multi_modal_projector
        self.queries = queries

    def forward(self, pixel_values: Tensor, patch_places: Tensor, tile_patches: Tensor) -> Tensor:
        """image_features [parts * queries, hidden]."""
        hidden, unseen = self.tower(pixel_values, patch_places, tile_patches)
        projector = self.projector
        queries = projector.query[: self.queries].expand(hidden.shape[0], -1, -1)
        read = self._attend(projector.cross_attn, queries, hidden, unseen)
        features: Tensor = projector.feed_forward(projector.layer_norm(read))
        return features.flatten(0, 1)

    @staticmethod
    def _attend(cross: Any, queries: Tensor, hidden: Tensor, unseen: Tensor) -> Tensor:
        """``AriaCrossAttention`` as plain products: torch's packed module cannot be exported."""
        attention = cross.multihead_attn
        hidden = cross.layer_norm_kv(hidden)
        given = (
            cross.q_proj(cross.layer_norm(queries)),
            cross.k_proj(hidden),
            cross.v_proj(hidden),
        )
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        query, key, value = (
            nn.functional.linear(one, weight, bias)
            .reshape(*one.shape[:-1], attention.num_heads, attention.head_dim)
            .transpose(1, 2)
            for one, weight, bias in zip(given, weights, biases, strict=True)
        )
        scores = query @ key.transpose(-1, -2) * attention.head_dim**-0.5 + unseen
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        made: Tensor = cross.linear(attention.out_proj(mixed))
        return made


def shared_beside(layer: Any, hidden_states: Tensor) -> Tensor:
    """``AriaTextMoELayer.forward``, the shared experts reading the states as they come.

    The original flattens the tokens and shapes them again, which torch's export refuses for free
    sizes. [B, S, H] -> the same shape.
    """
    flat = hidden_states.flatten(0, 1)
    _, shares, chosen = layer.router(flat)
    routed = layer.experts(flat, chosen, shares).reshape(hidden_states.shape)
    made: Tensor = routed + layer.shared_experts(hidden_states)
    return made
