"""Llama 4's modules for export: rotations in real numbers, positions from the host.

Imported lazily, because it needs torch at its top. transformers writes rotations as products of
complex numbers, which ONNX does not have.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers.models.llama4 import modeling_llama4


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of neighbours in x [B, S, H, D] turned by [B or 1, S, 1, D / 2, 2] (cosine, sine)."""
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = turns.unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    joined: Tensor = turned.flatten(3).type_as(x)
    return joined


def rotate(query: Tensor, key: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_emb`` for turns [B, S, D / 2, 2]."""
    turns = freqs_cis[:, :, None]
    return _rotated(query, turns), _rotated(key, turns)


def rotate_patches(query: Tensor, key: Tensor, freqs_ci: Tensor) -> tuple[Tensor, Tensor]:
    """``vision_apply_rotary_emb`` for turns [patches, 1, D / 2, 2]."""
    turns = freqs_ci[None]
    return _rotated(query, turns), _rotated(key, turns)


class RealRotationDecoder(nn.Module):
    """``Llama4TextModel`` on real numbers; its temperatures follow ``position_ids``.

    transformers counts the tokens of the cache for them, which the host alone can know. The
    decoder's rotary module and its layers without positions are changed for good.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self._positions: Tensor | None = None
        rotary = decoder.rotary_emb
        rotary.forward = lambda x, position_ids: _turns(rotary, position_ids)
        for layer in decoder.layers:
            attention = layer.self_attn
            if attention.attn_temperature_tuning and not attention.use_rope:
                attention.attn_temperature_tuning = False
                attention.q_proj.register_forward_hook(self._warm(attention))

    def _warm(self, attention: Any) -> Any:
        def hook(_: nn.Module, inputs: Any, queries: Tensor) -> Tensor:
            assert self._positions is not None
            steps = torch.floor((self._positions.float() + 1.0) / attention.floor_scale)
            warmed: Tensor = queries * (torch.log1p(steps) * attention.attn_scale + 1.0)[..., None]
            return warmed

        return hook

    def forward(self, **given: Any) -> Any:
        """As ``Llama4TextModel.forward``, with ``position_ids`` [B, S]."""
        self._positions = given["position_ids"]
        with patch.object(modeling_llama4, "apply_rotary_emb", rotate):
            return self.decoder(**given)


def _turns(rotary: Any, positions: Tensor) -> Tensor:
    """Cosines and sines [B, S, D / 2, 2] of positions [B, S]."""
    angles = positions[..., None].float() * rotary.inv_freq.float()
    turns: Tensor = torch.stack([angles.cos(), angles.sin()], dim=-1) * rotary.attention_scaling
    return turns


class CanvasFeatures(nn.Module):
    """Tower and projector on the tiles of one picture: pixel_values [tiles, 3, S, S].

    The tower's rotary module is changed for good.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projector = model.multi_modal_projector
        turns = torch.view_as_real(self.tower.rotary_embedding.freqs_ci)
        self.tower.rotary_embedding.forward = lambda x: turns

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden]."""
        with patch.object(modeling_llama4, "vision_apply_rotary_emb", rotate_patches):
            rows = self.tower(pixel_values, return_dict=True).last_hidden_state
        features: Tensor = self.projector(rows.flatten(0, 1))
        return features
