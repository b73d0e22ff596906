"""MobileNetV5 as a module, with the parameter names of timm's.

Mirrors ``timm.models.mobilenetv5`` and the blocks it is made of
(``timm.models._efficientnet_blocks``, ``MultiQueryAttention2d``). Imported lazily, because it
needs torch at its top.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlmc.families.mobilenet_v5 import Block, Network, divisible

_EPS = 1e-6


class Conv(nn.Conv2d):
    """A convolution whose output has the size of its input, divided by its stride and rounded up.

    Args:
        inside: Channels that come in.
        out: Channels that come out.
        size: Of its kernel.
        stride: By rows and columns.
        groups: Of channels that do not mix.
        same: Whether the padding depends on the picture's size, as TensorFlow's does.
        bias: Whether it has one.
    """

    def __init__(
        self,
        inside: int,
        out: int,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        same: bool,
        bias: bool = False,
    ) -> None:
        self.uneven = same and not (stride == 1 and size % 2)
        padding = 0 if self.uneven else (stride - 1 + size - 1) // 2
        super().__init__(inside, out, size, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inside, H, W] -> [B, out, H / stride, W / stride]."""
        if self.uneven:
            size, stride = self.kernel_size[0], self.stride[0]
            missing = [
                max((math.ceil(side / stride) - 1) * stride + size - side, 0)
                for side in (x.shape[3], x.shape[2])
            ]
            x = functional.pad(
                x, [part for all_ in missing for part in (all_ // 2, all_ - all_ // 2)]
            )
        return super().forward(x)


class Norm(nn.Module):
    """Root mean square over channels, then a tanh-approximated GELU where it is asked for."""

    def __init__(self, channels: int, *, act: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], the shape kept."""
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + _EPS) * self.weight[:, None, None]
        return functional.gelu(x, approximate="tanh") if self.act else x


def _normed(conv: Conv, *, act: bool = True) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, bn=Norm(conv.out_channels, act=act)))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], the shape kept."""
        return x * self.gamma[:, None, None]


class Edge(nn.Module):
    """timm's ``EdgeResidual``."""

    def __init__(self, before: int, block: Block, *, same: bool) -> None:
        super().__init__()
        inside = divisible(before * block.expand)
        size = block.kernels[1]
        self.conv_exp = Conv(before, inside, size, block.stride, same=same)
        self.bn1 = Norm(inside, act=True)
        self.conv_pwl = Conv(inside, block.out, same=same)
        self.bn2 = Norm(block.out)
        self.skip = block.skip and before == block.out and block.stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, out, H / stride, W / stride]."""
        made: Tensor = self.bn2(self.conv_pwl(self.bn1(self.conv_exp(x))))
        return made + x if self.skip else made


class Inverted(nn.Module):
    """timm's ``UniversalInvertedResidual``; the stride is that of one depthwise convolution."""

    def __init__(self, before: int, block: Block, *, same: bool, scale: bool = True) -> None:
        super().__init__()
        inside = divisible(before * block.expand)

        def depthwise(width: int, at: int, *, act: bool) -> nn.Module:
            size = block.kernels[at]
            # The middle one halves the picture, else the first, else the last.
            stride = block.stride if at == next(a for a in (1, 0, 2) if block.kernels[a]) else 1
            return _normed(Conv(width, width, size, stride, width, same=same), act=act)

        start, mid, end = block.kernels
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if start:
            parts["dw_start"] = depthwise(before, 0, act=False)
        parts["pw_exp"] = _normed(Conv(before, inside, same=same))
        if mid:
            parts["dw_mid"] = depthwise(inside, 1, act=True)
        parts["pw_proj"] = _normed(Conv(inside, block.out, same=same), act=False)
        if end:
            parts["dw_end"] = depthwise(block.out, 2, act=False)
        if scale:
            parts["layer_scale"] = Scale(block.out)
        for name, part in parts.items():
            self.add_module(name, part)
        self.skip = block.skip and before == block.out and block.stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, out, H / stride, W / stride]."""
        made = x
        for part in self.children():
            made = part(made)
        return made + x if self.skip else made


class MultiQueryAttention(nn.Module):
    """timm's ``MultiQueryAttention2d``: many queries, of one key and value a place."""

    def __init__(self, before: int, block: Block, *, same: bool) -> None:
        super().__init__()
        key, value = block.sizes
        self.heads, self.scaling = block.heads, key**-0.5
        self.attend = sdpa_attention_forward
        self.query = nn.Sequential(
            OrderedDict(proj=Conv(before, block.heads * key, same=False)),
        )
        self.key, self.value = (
            nn.Sequential(self._halved(before, block, same, width)) for width in block.sizes
        )
        self.output = nn.Sequential(
            OrderedDict(proj=Conv(block.heads * value, block.out, same=False))
        )

    @staticmethod
    def _halved(before: int, block: Block, same: bool, width: int) -> OrderedDict[str, nn.Module]:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if block.kv_stride > 1:
            size = block.kernels[1]
            parts["down_conv"] = Conv(before, before, size, block.kv_stride, before, same=same)
            parts["norm"] = Norm(before)
        parts["proj"] = Conv(before, width, same=same)
        return parts

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, out, H, W]."""
        query = self.query(x).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)
        key, value = (
            part(x).flatten(2).transpose(1, 2)[:, None] for part in (self.key, self.value)
        )
        seen, _ = self.attend(self, query, key, value, None, scaling=self.scaling, is_causal=False)
        made: Tensor = self.output(seen.flatten(2).transpose(1, 2).unflatten(2, x.shape[2:]))
        return made


class Attending(nn.Module):
    """timm's ``MobileAttention`` with one key and value for all heads."""

    def __init__(self, before: int, block: Block, *, same: bool) -> None:
        super().__init__()
        self.norm = Norm(before)
        self.attn = MultiQueryAttention(before, block, same=same)
        self.layer_scale = Scale(block.out)
        self.skip = block.skip and before == block.out

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, out, H, W]."""
        made: Tensor = self.layer_scale(self.attn(self.norm(x)))
        return made + x if self.skip else made


class Fusion(nn.Module):
    """timm's ``MobileNetV5MultiScaleFusionAdapter``: stages side by side, mixed and shrunk."""

    def __init__(self, made: Network) -> None:
        super().__init__()
        read = sum(made.channels[at] for at in made.taken)
        mix = Block("uir", made.features, expand=2.0, skip=False)
        self.ffn = Inverted(read, mix, same=False, scale=False)
        self.norm = Norm(made.features)
        self.side = made.side

    def forward(self, stages: list[Tensor]) -> Tensor:
        """[B, C, H, W] each, the largest first -> [B, features, *side]."""
        sides = stages[0].shape[2:]
        grown = [
            stage
            if stage.shape[2] >= sides[0] and stage.shape[3] >= sides[1]
            else functional.interpolate(stage, size=sides, mode="nearest")
            for stage in stages
        ]
        mixed = self.ffn(torch.cat(grown, dim=1))
        if tuple(sides) != self.side:
            steps = [side // to for side, to in zip(sides, self.side, strict=True)]
            if any(side % to for side, to in zip(sides, self.side, strict=True)):
                mixed = functional.interpolate(mixed, size=self.side, mode="bilinear")
            else:
                mixed = functional.avg_pool2d(mixed, kernel_size=steps, stride=steps)
        fused: Tensor = self.norm(mixed)
        return fused


_KINDS = {"er": Edge, "uir": Inverted, "mqa": Attending}


class MobileNetV5(nn.Module):
    """timm's ``MobileNetV5Encoder``."""

    def __init__(self, made: Network) -> None:
        super().__init__()
        stem = Conv(3, made.stem, 3, 2, same=made.same, bias=made.stem_bias)
        self.conv_stem = _normed(stem)
        stages, before = [], made.stem
        for stage in made.stages:
            blocks: list[nn.Module] = []
            for block in stage:
                blocks.append(_KINDS[block.kind](before, block, same=made.same))
                before = block.out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.taken = made.taken
        self.msfa = Fusion(made)

    def forward_features(self, x: Tensor) -> Tensor:
        """Pictures float [B, 3, H, W] -> [B, features, *side]."""
        kept = []
        x = self.conv_stem(x)
        for at, stage in enumerate([None, *self.blocks]):
            x = x if stage is None else stage(x)
            if at in self.taken:
                kept.append(x)
        fused: Tensor = self.msfa(kept)
        return fused


def attend_with(model: nn.Module, implementation: str) -> None:
    """Has every attention of a tower go through an attention function that transformers knows."""
    known = AttentionInterface()
    for module in model.modules():
        if isinstance(module, MultiQueryAttention):
            module.attend = known[implementation]
