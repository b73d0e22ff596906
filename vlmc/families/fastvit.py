"""FastViT as its configuration describes it, without torch; ``fastvit_modules`` computes it.

Mirrors ``timm.models.fastvit`` (``FastVit``): "FastViT: A Fast Hybrid Vision Transformer using
Structural Reparameterization", "MobileCLIP" and "MobileCLIP2", whose towers are the ``mci`` ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vlmc.errors import VlmcError
from vlmc.families.configs import whole
from vlmc.families.timm_configs import ARGS_AT, architecture, flag, model_args, numbers, ratio
from vlmc.schema import Json

HEAD = 32
"""Numbers in a head of attention, whatever the width."""
_MIXERS = ("repmixer", "attention")


@dataclass(frozen=True)
class FastVit:
    """A tower's sizes; a list has one entry for each stage.

    Attributes:
        layers: Blocks.
        embed_dims: Channels.
        token_mixers: What mixes places: ``repmixer`` (convolutions) or ``attention``.
        mlp_ratios: Channels between the two products of a block, by those of the block.
        downsamples: Whether a stage begins by halving its picture; one whose channels change does.
        se_downsamples: Whether channels are weighed there by what all of the picture shows.
        pos_embs: Whether places are told by a depthwise convolution.
        down_patch_size: Side of the convolution that halves.
        down_stride: By which the side is divided there.
        repmixer_kernel_size: Side of the convolution that mixes.
        cls_ratio: Channels of the features, by those of the last stage.
        lkc_use_act: Whether an activation follows the convolution that halves.
        stem_use_scale_branch: Whether a stem in branches has one of a single pixel.
        inference_mode: Whether branches were merged into one convolution, before they were saved.
        layer_norm: Whether tokens are normalized before attention; else channels, as trained.
        in_chans: Channels of a picture.
    """

    layers: tuple[int, ...] = (2, 2, 6, 2)
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    token_mixers: tuple[str, ...] = ("repmixer",) * 4
    mlp_ratios: tuple[float, ...] = (4,) * 4
    downsamples: tuple[bool, ...] = (False, True, True, True)
    se_downsamples: tuple[bool, ...] = (False,) * 4
    pos_embs: tuple[bool, ...] = (False,) * 4
    down_patch_size: int = 7
    down_stride: int = 2
    repmixer_kernel_size: int = 3
    cls_ratio: float = 2.0
    lkc_use_act: bool = False
    stem_use_scale_branch: bool = True
    inference_mode: bool = False
    layer_norm: bool = False
    in_chans: int = 3

    @property
    def features(self) -> int:
        """Channels of what the tower gives."""
        return int(self.embed_dims[-1] * self.cls_ratio)

    def halves(self, stage: int) -> bool:
        """Whether a stage begins with a convolution that makes its picture smaller."""
        before = self.embed_dims[max(stage - 1, 0)]
        return self.downsamples[stage] or before != self.embed_dims[stage]

    def side(self, pixels: int) -> int:
        """Rows (or columns) of features for so many pixels."""
        down = self.down_patch_size, self.down_stride
        steps = [(3, 2), (3, 2)]  # the stem's
        steps += [down for at in range(len(self.layers)) if self.halves(at)]
        for side, stride in steps:
            pixels = (pixels + 2 * padding(side, stride) - side) // stride + 1
        return pixels

    def count(self) -> int:
        """Numbers in its matrices and convolutions."""
        first, gate = self.embed_dims[0], self.features // 16
        found = first * (27 + 9 + first) + self.features * (9 + 2 * gate)
        for stage, width in enumerate(self.embed_dims):
            if self.halves(stage):
                found += width * (self.down_patch_size**2 + width)
            attends = self.token_mixers[stage] == "attention"
            mixed = 4 * width if attends else self.repmixer_kernel_size**2
            # Channel by channel, as far as seven pixels reach; then place by place.
            block = width * (mixed + 49 + 2 * int(width * self.mlp_ratios[stage]))
            found += 49 * width * self.pos_embs[stage] + self.layers[stage] * block
        return found


def padding(side: int, stride: int) -> int:
    """Zeros around a picture for a convolution that keeps its place."""
    return (stride - 1 + side - 1) // 2


def _hybrid(layers: tuple[int, ...], width: int, ratio: int, **values: Any) -> FastVit:
    """Four stages that double their channels, the last of attention."""
    return FastVit(
        layers=layers,
        embed_dims=(width, 2 * width, 4 * width, 8 * width),
        mlp_ratios=(ratio,) * 4,
        token_mixers=("repmixer",) * 3 + ("attention",),
        pos_embs=(False,) * 3 + (True,),
        **values,
    )


def _clip(layers: tuple[int, ...], width: int) -> FastVit:
    """The towers of MobileCLIP."""
    weighed = (False, False, True, True)
    return _hybrid(layers, width, 3, se_downsamples=weighed, lkc_use_act=True)


def _large(layers: tuple[int, ...], width: int) -> FastVit:
    """The five stages of MobileCLIP2's and FastVLM's, the last two of attention."""
    return FastVit(
        layers=layers,
        embed_dims=tuple(width << stage for stage in range(5)),
        mlp_ratios=(4,) * 5,
        token_mixers=("repmixer",) * 3 + ("attention",) * 2,
        downsamples=(False,) + (True,) * 4,
        se_downsamples=(False,) * 5,
        pos_embs=(False,) * 3 + (True,) * 2,
        lkc_use_act=True,
        stem_use_scale_branch=False,
        layer_norm=True,
    )


def _plain(layers: tuple[int, ...], width: int, ratio: int) -> FastVit:
    """Four stages of convolutions."""
    widths = (width, 2 * width, 4 * width, 8 * width)
    return FastVit(layers=layers, embed_dims=widths, mlp_ratios=(ratio,) * 4)


ARCHITECTURES = {
    "fastvit_t8": _plain((2, 2, 4, 2), 48, 3),
    "fastvit_t12": _plain((2, 2, 6, 2), 64, 3),
    "fastvit_s12": _plain((2, 2, 6, 2), 64, 4),
    "fastvit_sa12": _hybrid((2, 2, 6, 2), 64, 4),
    "fastvit_sa24": _hybrid((4, 4, 12, 4), 64, 4),
    "fastvit_sa36": _hybrid((6, 6, 18, 6), 64, 4),
    "fastvit_ma36": _hybrid((6, 6, 18, 6), 76, 4),
    "fastvit_mci0": _clip((2, 6, 10, 2), 64),
    "fastvit_mci1": _clip((4, 12, 20, 4), 64),
    "fastvit_mci2": _clip((4, 12, 24, 4), 80),
    "fastvit_mci3": _large((2, 12, 24, 4, 2), 96),
    "fastvit_mci4": _large((2, 12, 24, 4, 4), 128),
}
_PER_STAGE = ("token_mixers", "mlp_ratios", "downsamples", "se_downsamples", "pos_embs")
_KNOWN = {one.name for one in fields(FastVit)} - {"layer_norm"}  # no argument of timm's


def read_fastvit(vision: Json) -> FastVit:
    """The tower of a ``vision_config``, its ``model_args`` applied.

    Raises:
        VlmcError: No FastViT of that name is known, or an argument makes no sense.
    """
    named = architecture(vision, ARCHITECTURES)
    args = model_args(vision, _KNOWN)
    made = replace(
        named,
        layers=numbers(args, "layers", named.layers),
        embed_dims=numbers(args, "embed_dims", named.embed_dims),
        mlp_ratios=tuple(
            ratio(one, "mlp_ratios") for one in _list(args, "mlp_ratios", named.mlp_ratios)
        ),
        token_mixers=tuple(_list(args, "token_mixers", named.token_mixers)),
        downsamples=tuple(_list(args, "downsamples", named.downsamples)),
        se_downsamples=tuple(_list(args, "se_downsamples", named.se_downsamples)),
        pos_embs=_positions(args, named),
        down_patch_size=_odd(args, "down_patch_size", named.down_patch_size),
        down_stride=whole(args, "down_stride", named.down_stride, at=ARGS_AT, most=64),
        repmixer_kernel_size=_odd(args, "repmixer_kernel_size", named.repmixer_kernel_size),
        cls_ratio=ratio(args.get("cls_ratio", named.cls_ratio), "cls_ratio"),
        lkc_use_act=flag(args, "lkc_use_act", named.lkc_use_act),
        stem_use_scale_branch=flag(args, "stem_use_scale_branch", named.stem_use_scale_branch),
        inference_mode=flag(args, "inference_mode", named.inference_mode),
        in_chans=whole(args, "in_chans", named.in_chans, at=ARGS_AT),
    )
    _check(made)
    return made


def _list(args: Json, key: str, default: tuple[Any, ...]) -> list[Any]:
    value = args.get(key, list(default))
    if not isinstance(value, list):
        raise VlmcError(f"'{key}' is {value!r}, not a list with one entry a stage", at=ARGS_AT)
    return value


def _positions(args: Json, named: FastVit) -> tuple[bool, ...]:
    """A file can say that a stage has none, not what another would be."""
    given = _list(args, "pos_embs", named.pos_embs) if "pos_embs" in args else None
    if given is not None and any(one is not None for one in given):
        raise VlmcError(f"'pos_embs' is {given!r}; a file can hold nulls alone", at=ARGS_AT)
    return named.pos_embs if given is None else (False,) * len(given)


def _odd(args: Json, key: str, default: int) -> int:
    value = whole(args, key, default, at=ARGS_AT, most=64)
    if value % 2 == 0:
        raise VlmcError(f"'{key}' is {value}; a picture keeps its place with odd sides", at=ARGS_AT)
    return value


def _check(made: FastVit) -> None:
    stages = len(made.layers)
    for key in ("embed_dims", *_PER_STAGE):
        if len(getattr(made, key)) < stages:
            raise VlmcError(f"'{key}' has no entry for each of {stages} stages", at=ARGS_AT)
    if len(made.embed_dims) != stages:
        raise VlmcError(f"{len(made.embed_dims)} widths of {stages} stages", at=ARGS_AT)
    for key in ("downsamples", "se_downsamples"):
        if not all(isinstance(one, bool) for one in getattr(made, key)):
            raise VlmcError(f"'{key}' holds more than true and false", at=ARGS_AT)
    for width, mixer in zip(made.embed_dims, made.token_mixers, strict=False):
        if mixer not in _MIXERS:
            at = f"{ARGS_AT}: token_mixers"
            raise VlmcError(f"tokens mixed by {mixer!r}", at=at, allowed=_MIXERS)
        if mixer == "attention" and width % HEAD:
            raise VlmcError(f"{width} channels do not make heads of {HEAD}", at=ARGS_AT)
    reads = [made.embed_dims[0], *made.embed_dims]
    for before, width in zip(reads, [*made.embed_dims, made.features], strict=True):
        if width % before:
            raise VlmcError(f"{before} channels cannot become {width}", at=ARGS_AT)
    if made.in_chans != 3:
        raise VlmcError(f"pictures have 3 channels, the tower takes {made.in_chans}", at=ARGS_AT)


def matrices_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's tensors with the blocks' convolutions of one pixel as matrices [N, K]."""
    ends, pixel = (".mlp.fc1.weight", ".mlp.fc2.weight"), (1, 1)
    return {
        name: replace(ref, shape=ref.shape[:2])
        if name.endswith(ends) and ref.shape[2:] == pixel
        else ref
        for name, ref in index.items()
    }
