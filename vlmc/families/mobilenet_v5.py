"""MobileNetV5, the tower of Gemma 3n, as data: its blocks, and what a configuration changes.

Mirrors ``timm.models.mobilenetv5`` (``MobileNetV5Encoder`` and ``MobileNetV5`` without its
classifier); blocks are those of MobileNetV4 (arXiv 2404.10518).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmc.errors import VlmcError
from vlmc.schema import lookup

AT = "config.json: vision_config"
_ARGS_AT = f"{AT}: model_args"
# Arguments that matter to training alone, or to what is not asked for.
_IGNORED = {
    *("drop_rate", "drop_path_rate", "layer_scale_init_value"),
    *("out_indices", "num_classes", "global_pool"),
}


@dataclass(frozen=True)
class Block:
    """One block of a stage.

    Attributes:
        kind: ``er``: a wide convolution and a projection; ``uir``: depthwise ones before, between
            and behind two projections; ``mqa``: attention of several heads with one key and value.
        out: Channels that come out.
        stride: 2 where it halves both sides.
        expand: How many times as wide it is inside.
        kernels: Of the convolutions before, inside and behind; 0: there is none. ``mqa`` has one
            of the second size on its keys and values, where they have a stride.
        heads: Of attention.
        sizes: Of a head's keys and of its values.
        kv_stride: Of the rows and columns that keys and values are made of.
        skip: Whether what comes in is added, where it has the same shape.
    """

    kind: str
    out: int
    stride: int = 1
    expand: float = 1.0
    kernels: tuple[int, int, int] = (0, 0, 0)
    heads: int = 0
    sizes: tuple[int, int] = (64, 64)
    kv_stride: int = 1
    skip: bool = True


@dataclass(frozen=True)
class Network:
    """All sizes of a tower.

    Attributes:
        stem: Channels of the first convolution.
        stem_bias: Whether that has a bias.
        stages: Each of which halves both sides of a picture, as the stem does.
        same: Whether padding is TensorFlow's (more of it at the end), not the same on both sides.
        taken: Stages that the head reads, counted from the stem.
        side: Rows and columns that come out.
        features: Channels that come out.
    """

    stem: int
    stem_bias: bool
    stages: tuple[tuple[Block, ...], ...]
    same: bool
    taken: tuple[int, ...]
    side: tuple[int, int]
    features: int

    @property
    def channels(self) -> tuple[int, ...]:
        """Behind the stem, and behind each stage."""
        return (self.stem, *(stage[-1].out for stage in self.stages))


def _edge(out: int) -> tuple[Block, ...]:
    first = Block("er", out, 2, 4.0, (0, 3, 0))
    return first, replace(first, stride=1), replace(first, stride=1)


def _inverted(out: int, *shapes: tuple[int, int, float]) -> tuple[Block, ...]:
    """Blocks by their kernels before and inside, and their expansion; the first has a stride."""
    made = [Block("uir", out, 1, expand, (a, k, 0)) for a, k, expand in shapes]
    return replace(made[0], stride=2), *made[1:]


def _attending(times: int, out: int, heads: int, size: int, kv_stride: int) -> tuple[Block, ...]:
    attend = Block("mqa", out, 1, 1.0, (0, 3, 0), heads, (size, size), kv_stride)
    return (attend, Block("uir", out, 1, 2.0)) * times


_NARROW = _inverted(256, (3, 5, 6.0), *[(5, 0, 4.0), (3, 0, 4.0)] * 2)
_LARGE = (
    _edge(128),
    _NARROW,
    (
        *_inverted(640, (5, 5, 6.0), *[(5, 0, 4.0)] * 7, (0, 0, 1.0)),
        *_attending(14, 640, 12, 64, 2),
    ),
    (*_inverted(1280, (5, 5, 6.0)), *_attending(19, 1280, 16, 96, 1)),
)
_BASE = (
    _edge(128),
    _NARROW,
    (
        *_inverted(512, (5, 5, 6.0), *[(5, 0, 4.0)] * 2, (0, 0, 1.0)),
        *_attending(6, 512, 8, 64, 1),
    ),
    (*_inverted(1024, (5, 5, 6.0)), *_attending(7, 1024, 16, 64, 1)),
)
# By timm's name: stages, and whether it is the encoder, padded as TensorFlow does, whose features
# are always as many.
_ARCHITECTURES: dict[str, tuple[tuple[tuple[Block, ...], ...], bool]] = {
    "mobilenetv5_300m_enc": (_LARGE, True),
    "mobilenetv5_300m": (_LARGE, False),
    "mobilenetv5_base": (_BASE, False),
}
_FEATURES = 2048


def network(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """The tower that ``timm.create_model`` makes.

    Args:
        architecture: timm's name of it, a tag of its weights behind a full stop left out.
        arguments: What timm is given beside: ``model_args`` of the configuration.

    Raises:
        VlmcError: There is no such tower, or an argument that is not known.
    """
    known, encoder = lookup(
        _ARCHITECTURES, architecture.partition(".")[0], kind="tower", at=f"{AT}: architecture"
    )
    # timm leaves out what is null, too.
    given = {k: value for k, value in arguments.items() if k not in _IGNORED and value is not None}
    multiplier = _number(given.pop("channel_multiplier", 1.0), "channel_multiplier")
    listed = given.pop("block_args", None)
    stages = known if listed is None else _listed(listed)
    stem = _whole(given.pop("stem_size", 64), "stem_size")
    if not given.pop("fix_stem", multiplier < 1.0):
        stem = divisible(stem * multiplier)
    padding = given.pop("pad_type", "same" if encoder else "")
    if padding not in ("same", ""):
        raise VlmcError(f"padding '{padding}' is not known", at=f"{_ARGS_AT}: pad_type")
    features = given.pop("num_features", _FEATURES)
    side = given.pop("msfa_output_resolution", 16)
    made = Network(
        stem,
        bool(given.pop("stem_bias", True)),
        tuple(tuple(replace(b, out=divisible(b.out * multiplier)) for b in s) for s in stages),
        padding == "same",
        _taken(given.pop("msfa_indices", (-2, -1)), len(stages) + 1),
        _pair(side),
        _FEATURES if encoder else _whole(features, "num_features"),
    )
    # What is said of the rest must be what timm does without it.
    usual = {"in_chans": 3, "use_msfa": True, "se_from_exp": True}
    for key, value in given.items():
        if key not in usual or value != usual[key]:
            raise VlmcError(f"'{key}' is {value!r}, which is not supported", at=_ARGS_AT)
    return made


def divisible(channels: float) -> int:
    """The nearest multiple of 8 that is at least 8, and not less by more than a tenth.

    Mirrors timm's ``make_divisible``.
    """
    found = max(8, int(channels + 4) // 8 * 8)
    return found if found >= 0.9 * channels else found + 8


# Keys of a listed block, as ``decode_arch_def`` writes them, by kind: the value where one is left
# out. ``act_layer`` and the like must say nothing new.
_KEYS: dict[str, dict[str, Any]] = {
    "er": {"exp_kernel_size": 3, "exp_ratio": 1.0, "pw_kernel_size": 1, "force_in_chs": 0},
    "uir": {
        "dw_kernel_size_start": 0,
        "dw_kernel_size_mid": 3,
        "dw_kernel_size_end": 0,
        "exp_ratio": 1.0,
    },
    "mqa": {"dw_kernel_size": 3, "num_heads": 8, "key_dim": 64, "value_dim": 64, "kv_stride": 1},
}
_FIXED = {"pw_kernel_size": 1, "force_in_chs": 0, "act_layer": None, "se_ratio": 0.0}


def _listed(stages: Any) -> tuple[tuple[Block, ...], ...]:
    at = f"{_ARGS_AT}: block_args"
    if not isinstance(stages, list) or not all(isinstance(s, list) and s for s in stages):
        raise VlmcError("this is no list of stages, each a list of blocks", at=at)
    made = tuple(tuple(_block(one, at) for one in stage) for stage in stages)
    # timm lets only a stage's first block halve a picture, and the head counts such stages.
    firsts = [stage[0].stride for stage in made]
    if len(made) > 4 or any(stride != 2 for stride in firsts):
        raise VlmcError("stages must begin with a stride of 2, and be four at most", at=at)
    return tuple((s[0], *(replace(b, stride=1) for b in s[1:])) for s in made)


def _block(given: Any, at: str) -> Block:
    found = dict(given) if isinstance(given, dict) else {}
    kind = found.pop("block_type", None)
    if kind not in _KEYS:
        raise VlmcError(f"a block is {kind!r}", at=at, allowed=_KEYS)
    own = _KEYS[kind]
    out, stride = (_whole(found.pop(key, None), key) for key in ("out_chs", "stride"))
    skip = not found.pop("noskip", False)
    values = {key: found.pop(key, default) for key, default in own.items()}
    for key, value in {**found, **values}.items():
        if value != _FIXED[key] if key in _FIXED else key not in own:
            raise VlmcError(f"'{key}' of a block is {value!r}, which is not supported", at=at)
    if kind == "mqa":
        return Block(
            kind,
            out,
            stride,
            1.0,
            (0, _whole(values["dw_kernel_size"], "dw_kernel_size"), 0),
            _whole(values["num_heads"], "num_heads"),
            (_whole(values["key_dim"], "key_dim"), _whole(values["value_dim"], "value_dim")),
            _whole(values["kv_stride"], "kv_stride"),
            skip,
        )
    sizes = [_whole(values[key], key, 0) for key in own if key.startswith(("exp_k", "dw_k"))]
    kernels = (0, sizes[0], 0) if kind == "er" else (sizes[0], sizes[1], sizes[2])
    return Block(kind, out, stride, _number(values["exp_ratio"], "exp_ratio"), kernels, skip=skip)


def _taken(given: Any, count: int) -> tuple[int, ...]:
    """Which features the head reads, in the order they are made."""
    chosen = range(count - given, count) if isinstance(given, int) else given
    places = {at + count if at < 0 else at for at in chosen}
    if not places or not places <= set(range(count)):
        raise VlmcError(f"{given!r} are no stages of {count}", at=f"{_ARGS_AT}: msfa_indices")
    return tuple(sorted(places))


def _pair(given: Any) -> tuple[int, int]:
    sides = given if isinstance(given, Sequence) else (given, given)
    if len(sides) != 2:
        raise VlmcError(f"{given!r} are no two sides", at=f"{_ARGS_AT}: msfa_output_resolution")
    rows, columns = (_whole(one, "msfa_output_resolution") for one in sides)
    return rows, columns


def _whole(value: Any, key: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise VlmcError(f"'{key}' is {value!r}, not a whole number of {least} or more", at=_ARGS_AT)
    return value


def _number(value: Any, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise VlmcError(f"'{key}' is {value!r}, not a number above 0", at=_ARGS_AT)
    return float(value)


def numbers(made: Network) -> int:
    """How many numbers the convolutions of a tower hold."""
    before, total = made.stem, 27 * made.stem
    for block in (block for stage in made.stages for block in stage):
        start, mid, end = block.kernels
        inside = divisible(before * block.expand)
        if block.kind == "er":
            total += inside * (before * mid**2 + block.out)
        elif block.kind == "uir":
            total += inside * (before + block.out + mid**2) + before * start**2 + block.out * end**2
        else:
            wide = sum(block.sizes)
            total += before * wide + block.heads * (
                block.sizes[0] * before + block.sizes[1] * block.out
            )
            total += 2 * before * mid**2 if block.kv_stride > 1 else 0
        before = block.out
    read = sum(made.channels[at] for at in made.taken)
    return total + divisible(2 * read) * (read + made.features)
