"""Convolutions of FastViT: branches that add up while they are trained, and one once merged.

Imported lazily, with torch. Parameters are named as checkpoints name them, and which a checkpoint
has is its configuration's ``inference_mode``: both answer alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmc.families.fastvit import padding

_POSITIONS = 7  # side of the convolution that tells places
# Channels that weigh the others, one for so many of them: of features, and where a stage begins.
_GATE, _DOWN_GATE = 16, 4


def convolution(before: int, after: int, side: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the picture's place, with a bias."""
    return nn.Conv2d(before, after, side, stride, padding(side, stride), groups=groups)


class Normed(nn.Module):
    """A convolution and the normalization of its channels."""

    def __init__(self, before: int, after: int, side: int, stride: int, groups: int) -> None:
        super().__init__()
        made = convolution(before, after, side, stride, groups)
        made.register_parameter("bias", None)
        self.conv, self.bn = made, nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] to features, of fewer places where it strides."""
        normed: Tensor = self.bn(self.conv(x))
        return normed


class _Gate(nn.Module):
    """Channels weighed by what all of the picture shows (squeeze and excitation)."""

    def __init__(self, width: int, part: int, divisor: int) -> None:
        super().__init__()
        share = width / part
        inner = max(divisor, int(share + divisor / 2) // divisor * divisor)
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        weighed = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(weighed))


class Branches(nn.Module):
    """MobileOne's block: branches that add up, or the convolution they were merged into."""

    def __init__(
        self,
        before: int,
        after: int,
        side: int,
        stride: int = 1,
        *,
        groups: int = 1,
        merged: bool,
        act: bool = True,
        scaled: bool = True,
        normed: bool = True,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.se = _Gate(after, _GATE, 1) if gate else nn.Identity()
        self.act = nn.GELU() if act else nn.Identity()
        self.reparam_conv = convolution(before, after, side, stride, groups) if merged else None
        self.identity: nn.Module | None = None
        self.conv_kxk: nn.ModuleList | None = None
        self.conv_scale: nn.Module | None = None
        if merged:
            return
        if before == after and stride == 1:
            self.identity = nn.BatchNorm2d(before)
        if normed:
            self.conv_kxk = nn.ModuleList([Normed(before, after, side, stride, groups)])
        if scaled and side > 1:
            self.conv_scale = Normed(before, after, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] to features, of fewer places where it strides."""
        branches = (self.conv_scale, self.identity, *(self.conv_kxk or ()))
        parts = branches if self.reparam_conv is None else (self.reparam_conv,)
        added = [part(x) for part in parts if part is not None]
        out: Tensor = self.act(self.se(sum(added[1:], added[0])))
        return out


class LargeKernel(nn.Module):
    """A depthwise convolution of large side beside one of side 3, or both merged."""

    def __init__(
        self,
        before: int,
        after: int,
        side: int,
        stride: int,
        *,
        merged: bool,
        gate: bool,
        act: bool,
    ) -> None:
        super().__init__()
        self.reparam_conv = convolution(before, after, side, stride, before) if merged else None
        if not merged:
            self.large_conv = Normed(before, after, side, stride, before)
            self.small_conv = Normed(before, after, 3, stride, before)
        self.se = _Gate(after, _DOWN_GATE, 8) if gate else nn.Identity()
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W] to features, of fewer places where it strides."""
        merged = self.reparam_conv
        added = self.large_conv(x) + self.small_conv(x) if merged is None else merged(x)
        out: Tensor = self.act(self.se(added))
        return out


class Positions(nn.Module):
    """Places told by a depthwise convolution added to what it reads, or merged with it."""

    def __init__(self, width: int, *, merged: bool) -> None:
        super().__init__()
        made = convolution(width, width, _POSITIONS, groups=width)
        self.reparam_conv = made if merged else None
        self.pos_enc = None if merged else made

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C, H, W], and as many."""
        if self.reparam_conv is not None:
            x = self.reparam_conv(x)
        if self.pos_enc is not None:
            x = self.pos_enc(x) + x
        return x
