"""FastViT in torch, its parameters named as checkpoints name them; imported lazily.

Mirrors ``timm.models.fastvit`` where it answers: a picture in, its last feature map out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmc.families.fastvit import HEAD, FastVit
from vlmc.families.mergeable_modules import Branches, LargeKernel, Normed, Positions, convolution

_MIXED = 7  # side of the convolution before a block's products


class _Down(nn.Module):
    """What a stage begins with: fewer places, more channels."""

    def __init__(self, sizes: FastVit, stage: int) -> None:
        super().__init__()
        before, after = sizes.embed_dims[stage - 1 if stage else 0], sizes.embed_dims[stage]
        merged = sizes.inference_mode
        self.proj = nn.Sequential(
            LargeKernel(
                before,
                after,
                sizes.down_patch_size,
                sizes.down_stride,
                merged=merged,
                gate=sizes.se_downsamples[stage],
                act=sizes.lkc_use_act,
            ),
            Branches(after, after, 1, merged=merged),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x)
        return out


class _Scale(nn.Module):
    """One factor a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _RepMixer(nn.Module):
    """Neighbours mixed by depthwise convolutions, or by the one they were merged into."""

    def __init__(self, sizes: FastVit, width: int) -> None:
        super().__init__()
        side = sizes.repmixer_kernel_size
        self.reparam_conv = (
            convolution(width, width, side, groups=width) if sizes.inference_mode else None
        )
        if self.reparam_conv is None:
            self.norm = Branches(
                width,
                width,
                side,
                groups=width,
                merged=False,
                act=False,
                scaled=False,
                normed=False,
            )
            self.mixer = Branches(width, width, side, groups=width, merged=False, act=False)
            self.layer_scale = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.reparam_conv is None:
            mixed: Tensor = x + self.layer_scale(self.mixer(x) - self.norm(x))
        else:
            mixed = self.reparam_conv(x)
        return mixed


class _Attention(nn.Module):
    """All places attend to all, in heads of ``HEAD``; [B, C, H, W] in and out."""

    is_causal = False

    def __init__(self, width: int, config: Any) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        size = (*tokens.shape[:2], 3, -1, HEAD)
        query, key, value = self.qkv(tokens).reshape(size).permute(2, 0, 3, 1, 4).unbind(0)
        name = self.config._attn_implementation
        # As timm, which has no other: also where "eager" is asked for.
        attend = AttentionInterface().get_interface(
            "sdpa" if name == "eager" else name, sdpa_attention_forward
        )
        mixed, _ = attend(self, query, key, value, None, scaling=HEAD**-0.5, is_causal=False)
        out: Tensor = self.proj(mixed.flatten(2)).transpose(1, 2).reshape(x.shape)
        return out


class _Mlp(nn.Module):
    """Neighbours mixed channel by channel, then channels mixed place by place.

    What mixes channels is stored as convolutions of one pixel; as matrices they are quantized.
    """

    def __init__(self, sizes: FastVit, stage: int, matrices: bool) -> None:
        super().__init__()
        width = sizes.embed_dims[stage]
        inner = int(width * sizes.mlp_ratios[stage])
        self.conv = Normed(width, width, _MIXED, 1, width)
        self.matrices = matrices
        self.fc1 = nn.Linear(width, inner) if matrices else nn.Conv2d(width, inner, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(inner, width) if matrices else nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = self.conv(x)
        if self.matrices:
            x = x.flatten(2).transpose(1, 2)
        x = self.fc2(self.act(self.fc1(x)))
        return x.transpose(1, 2).reshape(shape) if self.matrices else x


class _MixerBlock(nn.Module):
    def __init__(self, sizes: FastVit, stage: int, matrices: bool) -> None:
        super().__init__()
        width = sizes.embed_dims[stage]
        self.token_mixer = _RepMixer(sizes, width)
        self.mlp = _Mlp(sizes, stage, matrices)
        self.layer_scale = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        x = x + self.layer_scale(self.mlp(x))
        return x


class _LayerNorm(nn.LayerNorm):
    """Normalizes the channels of each place of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _AttentionBlock(nn.Module):
    def __init__(self, sizes: FastVit, stage: int, config: Any, matrices: bool) -> None:
        super().__init__()
        width = sizes.embed_dims[stage]
        self.norm = _LayerNorm(width) if sizes.layer_norm else nn.BatchNorm2d(width)
        self.token_mixer = _Attention(width, config)
        self.layer_scale_1 = _Scale(width)
        self.mlp = _Mlp(sizes, stage, matrices)
        self.layer_scale_2 = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.token_mixer(self.norm(x)))
        x = x + self.layer_scale_2(self.mlp(x))
        return x


class _Stage(nn.Module):
    def __init__(self, sizes: FastVit, stage: int, config: Any, matrices: bool) -> None:
        super().__init__()
        self.downsample = _Down(sizes, stage) if sizes.halves(stage) else nn.Identity()
        width, merged = sizes.embed_dims[stage], sizes.inference_mode
        told = sizes.pos_embs[stage]
        self.pos_emb = Positions(width, merged=merged) if told else nn.Identity()
        attends = sizes.token_mixers[stage] == "attention"
        self.blocks = nn.ModuleList(
            _AttentionBlock(sizes, stage, config, matrices)
            if attends
            else _MixerBlock(sizes, stage, matrices)
            for _ in range(sizes.layers[stage])
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_emb(self.downsample(x))
        for block in self.blocks:
            x = block(x)
        return x


class FastVitTower(nn.Module):
    """The whole tower.

    Args:
        sizes: What it is made of.
        config: The vision configuration, which names the attention implementation.
        matrices: Whether its convolutions of one pixel in blocks are matrices, of two axes.
    """

    def __init__(self, sizes: FastVit, config: Any, *, matrices: bool) -> None:
        super().__init__()
        first, last, merged = sizes.embed_dims[0], sizes.embed_dims[-1], sizes.inference_mode
        scaled = sizes.stem_use_scale_branch
        self.stem = nn.Sequential(
            Branches(sizes.in_chans, first, 3, 2, merged=merged, scaled=scaled),
            Branches(first, first, 3, 2, groups=first, merged=merged, scaled=scaled),
            Branches(first, first, 1, merged=merged, scaled=scaled),
        )
        self.stages = nn.ModuleList(
            _Stage(sizes, stage, config, matrices) for stage in range(len(sizes.layers))
        )
        # A channel is read by as many of the features as there are for each.
        self.final_conv = Branches(last, sizes.features, 3, groups=last, merged=merged, gate=True)

    def forward_features(self, x: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to features [B, C, h, w]."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.final_conv(x)
        return features

    def forward_head(self, features: Tensor) -> None:
        """Nothing: no model reads what is pooled."""
