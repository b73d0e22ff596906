"""The Perception Encoder in torch, and what Perception LM makes of it; imported lazily.

Its parameters are named as checkpoints name them. Mirrors ``timm.models.eva`` (``Eva`` with rotary
attention) where it answers, and ``transformers.models.perception_lm``
(``PerceptionLMModel.get_image_features``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmc.families.perception_encoder import PerceptionEncoder

_EPSILON = 1e-5


class _Places(nn.Module):
    """The angles by which a patch's place rotates: float [2, patches, head], sines and cosines."""

    table: Tensor

    def __init__(self, sizes: PerceptionEncoder) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.embed_dim // sizes.num_heads
        shape = (2, sizes.grid[0] * sizes.grid[1], width)
        self.register_buffer("table", torch.empty(shape), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fills the table; transformers calls it once a model's buffers are real."""
        sizes = self.sizes
        bands = sizes.embed_dim // sizes.num_heads // 4
        steps = torch.arange(bands, dtype=torch.float32) / bands
        frequencies = 1.0 / sizes.rope_temperature**steps
        places = []
        for length, trained in zip(sizes.grid, sizes.ref_feat_shape or sizes.grid, strict=True):
            place = torch.arange(length, dtype=torch.float32) + sizes.rope_grid_offset
            places.append(place / length * trained if sizes.ref_feat_shape else place)
        down, across = torch.meshgrid(*places, indexing="ij")
        # Columns before rows.
        angles = torch.stack((across, down), dim=-1)[..., None] * frequencies
        angles = angles.flatten(0, 1).flatten(1).repeat_interleave(2, dim=-1)
        self.table.copy_(torch.stack((angles.sin(), angles.cos())))


def _rotated(states: Tensor, places: Tensor, first: int) -> Tensor:
    """States [B, heads, N, D], those from ``first`` on rotated in pairs of neighbours."""
    patches = states[:, :, first:]
    turned = torch.stack((-patches[..., 1::2], patches[..., ::2]), dim=-1).reshape(patches.shape)
    made = patches * places[1] + turned * places[0]
    return torch.cat((states[:, :, :first], made), dim=2) if first else made


class _Attention(nn.Module):
    is_causal = False

    def __init__(self, sizes: PerceptionEncoder, config: Any) -> None:
        super().__init__()
        self.config, self.heads, self.first = config, sizes.num_heads, int(sizes.class_token)
        width = sizes.embed_dim
        self.qkv = nn.Linear(width, 3 * width, bias=sizes.qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        size = (*x.shape[:2], 3, self.heads, x.shape[2] // self.heads)
        query, key, value = self.qkv(x).reshape(size).permute(2, 0, 3, 1, 4).unbind(0)
        if places is not None:
            query, key = (_rotated(states, places, self.first) for states in (query, key))
        name = self.config._attn_implementation
        # As timm, which has no other: also where "eager" is asked for.
        attend = AttentionInterface().get_interface(
            "sdpa" if name == "eager" else name, sdpa_attention_forward
        )
        scaling = query.shape[-1] ** -0.5
        mixed, _ = attend(self, query, key, value, None, scaling=scaling, is_causal=False)
        out: Tensor = self.proj(mixed.flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, sizes: PerceptionEncoder) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.embed_dim, sizes.inner)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(sizes.inner, sizes.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, sizes: PerceptionEncoder, config: Any) -> None:
        super().__init__()
        width = sizes.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = _Attention(sizes, config)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = _Mlp(sizes)
        scaled = sizes.init_values is not None
        self.gamma_1 = nn.Parameter(torch.ones(width)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        added = self.attn(self.norm1(x), places)
        x = x + (added if self.gamma_1 is None else self.gamma_1 * added)
        added = self.mlp(self.norm2(x))
        x = x + (added if self.gamma_2 is None else self.gamma_2 * added)
        return x


class _Patches(nn.Module):
    def __init__(self, sizes: PerceptionEncoder) -> None:
        super().__init__()
        side, biased = sizes.patch_size, not sizes.use_pre_transformer_norm
        self.proj = nn.Conv2d(3, sizes.embed_dim, side, side, bias=biased)

    def forward(self, x: Tensor) -> Tensor:
        patches: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return patches


class PerceptionTower(nn.Module):
    """The whole tower; what pools its tokens is left out.

    Args:
        sizes: What it is made of.
        config: The vision configuration, which names the attention implementation.
    """

    def __init__(self, sizes: PerceptionEncoder, config: Any) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.embed_dim
        self.patch_embed = _Patches(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if sizes.class_token else None
        learned = sizes.grid[0] * sizes.grid[1] if sizes.no_embed_class else sizes.tokens
        added = sizes.use_abs_pos_emb
        self.pos_embed = nn.Parameter(torch.zeros(1, learned, width)) if added else None
        self.rope = _Places(sizes) if sizes.use_rot_pos_emb else None
        before = sizes.use_pre_transformer_norm
        self.norm_pre = nn.LayerNorm(width, eps=_EPSILON) if before else nn.Identity()
        self.blocks = nn.ModuleList(_Block(sizes, config) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, eps=_EPSILON) if sizes.normed else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to features [B, tokens, C], those of the class token first."""
        x = self.patch_embed(x)
        if self.pos_embed is not None and self.sizes.no_embed_class:
            x = x + self.pos_embed
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None and not self.sizes.no_embed_class:
            x = x + self.pos_embed
        x = self.norm_pre(x)
        places = None if self.rope is None else self.rope.table
        for block in self.blocks:
            x = block(x, places)
        features: Tensor = self.norm(x)
        return features

    def forward_head(self, features: Tensor) -> None:
        """Nothing: no model reads what is pooled."""


class PerceptionFeatures(nn.Module):
    """Tower, projector and pooling on the tiles of one picture: pixel_values [tiles, 3, S, S]."""

    averages: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        config = model.config
        tower: PerceptionTower = self.model.vision_tower.timm_model
        self.first = int(config.vision_use_cls_token)
        self.ratio = config.projector_pooling_ratio
        rows = tower.sizes.grid[0]
        self.register_buffer("averages", _averages(rows, rows // self.ratio), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden], tile after tile."""
        project = self.model.multi_modal_projector
        tower: PerceptionTower = self.model.vision_tower.timm_model
        rows = tower.forward_features(pixel_values)[:, self.first :]
        rows = project.linear_2(project.gelu(project.linear_1(rows)))
        if self.ratio > 1:
            side, width = self.averages.shape[1], rows.shape[2]
            rows = self.averages @ rows.reshape(-1, side, side * width)
            rows = self.averages @ rows.reshape(-1, side, width)
        features: Tensor = rows.flatten(0, 1)
        return features


def _averages(before: int, after: int) -> Tensor:
    """Shares [after, before] of ``adaptive_avg_pool2d`` along one side."""
    made = torch.zeros(after, before)
    for row in range(after):
        start, stop = row * before // after, -(-(row + 1) * before // after)
        made[row, start:stop] = 1.0 / (stop - start)
    return made
