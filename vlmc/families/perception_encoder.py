"""The Perception Encoder as its configuration describes it, without torch.

Mirrors ``timm.models.eva`` (``Eva``) as far as its ``vit_pe_*`` go: "Perception Encoder: The best
visual embeddings are not at the output of the network". ``perception_modules`` computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, MAX_SIZE, whole
from vlmc.families.timm_configs import ARGS_AT, architecture, flag, model_args, ratio
from vlmc.schema import Json


@dataclass(frozen=True)
class PerceptionEncoder:
    """A tower's sizes.

    Attributes:
        img_size: Height and width of the picture it takes, in pixels.
        patch_size: Side of a patch.
        embed_dim: Numbers in a token.
        depth: Layers.
        num_heads: Heads of a layer's attention.
        mlp_ratio: Numbers between a layer's two products, by those of a token.
        class_token: Whether a token of its own comes first.
        no_embed_class: Whether that token has no learned position.
        use_abs_pos_emb: Whether positions are learned and added.
        use_rot_pos_emb: Whether queries and keys are rotated by their patch's place.
        ref_feat_shape: Rows and columns of the grid that places are stretched to; None: as counted.
        rope_grid_offset: Added to each place.
        rope_temperature: Of the frequencies.
        use_pre_transformer_norm: Whether tokens are normalized before the layers.
        use_post_transformer_norm: And behind them; None: unless pooled ones are.
        use_fc_norm: Whether pooled tokens are; None: where they are averaged.
        global_pool: How tokens are pooled, which nothing reads but the two above.
        init_values: Whether what a layer adds is scaled, by factors that began as this; None: no.
        qkv_bias: Whether queries, keys and values have biases.
    """

    img_size: tuple[int, int]
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    class_token: bool = True
    no_embed_class: bool = False
    use_abs_pos_emb: bool = True
    use_rot_pos_emb: bool = True
    ref_feat_shape: tuple[int, int] | None = None
    rope_grid_offset: float = 0.0
    rope_temperature: float = 10000.0
    use_pre_transformer_norm: bool = True
    use_post_transformer_norm: bool | None = None
    use_fc_norm: bool | None = None
    global_pool: str = "avg"
    init_values: float | None = None
    qkv_bias: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches, and the token before them."""
        return self.grid[0] * self.grid[1] + self.class_token

    @property
    def inner(self) -> int:
        """Numbers between a layer's two products."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def normed(self) -> bool:
        """Whether its features are normalized."""
        if self.use_post_transformer_norm is not None:
            return self.use_post_transformer_norm
        pooled = self.global_pool == "avg" if self.use_fc_norm is None else self.use_fc_norm
        return not pooled

    def count(self) -> int:
        """Numbers in its matrices."""
        width = self.embed_dim
        places = self.tokens * self.use_abs_pos_emb
        return width * (self.depth * (4 * width + 2 * self.inner) + 3 * self.patch_size**2 + places)


_CORE: Json = {"global_pool": "map", "rope_grid_offset": 1.0}
_LANG: Json = {"use_post_transformer_norm": False, "use_fc_norm": False, "rope_grid_offset": 1.0}
_GIANT: Json = {
    "patch_size": 14,
    "embed_dim": 1536,
    "num_heads": 16,
    "mlp_ratio": 8960 / 1536,
    "class_token": False,
    "rope_grid_offset": 0.0,
}
_LARGE: Json = {"patch_size": 14, "embed_dim": 1024, "num_heads": 16}


def _of(side: int, trained: int, *settings: Json, **values: Any) -> PerceptionEncoder:
    """A tower for pictures of ``side`` pixels, trained on a grid of so many rows."""
    merged: dict[str, Any] = {}
    for one in (*settings, values):
        merged.update(one)
    return PerceptionEncoder((side, side), ref_feat_shape=(trained, trained), **merged)


_TINY: Json = {"embed_dim": 192, "num_heads": 3}
_SMALL: Json = {"embed_dim": 384, "num_heads": 6}
ARCHITECTURES = {
    "vit_pe_core_tiny_patch16_384": _of(384, 24, _CORE, _TINY),
    "vit_pe_core_small_patch16_384": _of(384, 24, _CORE, _SMALL),
    "vit_pe_core_base_patch16_224": _of(224, 14, _CORE),
    "vit_pe_core_large_patch14_336": _of(336, 24, _CORE, _LARGE, depth=24),
    "vit_pe_core_gigantic_patch14_448": _of(448, 32, _CORE, _GIANT, depth=50),
    "vit_pe_lang_large_patch14_448": _of(448, 32, _LANG, _LARGE, depth=23, init_values=0.1),
    "vit_pe_lang_gigantic_patch14_448": _of(448, 32, _LANG, _GIANT, depth=47, init_values=0.1),
    "vit_pe_spatial_tiny_patch16_512": _of(512, 32, _LANG, _TINY),
    "vit_pe_spatial_small_patch16_512": _of(512, 32, _LANG, _SMALL),
    "vit_pe_spatial_base_patch16_512": _of(512, 32, _LANG),
    "vit_pe_spatial_large_patch14_448": _of(448, 32, _LANG, _LARGE, depth=24),
    "vit_pe_spatial_gigantic_patch14_448": _of(448, 32, _LANG, _GIANT, depth=50, init_values=0.1),
}
_KNOWN = {one.name for one in fields(PerceptionEncoder)}
_POOLS = ("", "avg", "avgmax", "max", "token", "map")
_FLAGS = (
    "class_token",
    "no_embed_class",
    "use_abs_pos_emb",
    "use_rot_pos_emb",
    "use_pre_transformer_norm",
    "use_post_transformer_norm",
    "use_fc_norm",
    "qkv_bias",
)
_COUNTS = ("patch_size", "embed_dim", "depth", "num_heads")


def read_perception_encoder(vision: Json) -> PerceptionEncoder:
    """The tower of a ``vision_config``, its ``model_args`` applied.

    Raises:
        VlmcError: No Perception Encoder of that name is known, or an argument makes no sense.
    """
    named = architecture(vision, ARCHITECTURES)
    args = model_args(vision, _KNOWN)
    changed: dict[str, Any] = {}
    for key in _COUNTS:
        most = MAX_LAYERS if key == "depth" else MAX_SIZE
        changed[key] = whole(args, key, getattr(named, key), at=ARGS_AT, most=most)
    for key in _FLAGS:
        if key in args:
            changed[key] = flag(args, key, False)
    for key in ("mlp_ratio", "init_values", "rope_temperature"):
        if key in args:
            changed[key] = ratio(args[key], key)
    for key in ("img_size", "ref_feat_shape"):
        if key in args:
            changed[key] = _pair(args, key)
    offset = args.get("rope_grid_offset", named.rope_grid_offset)
    if not isinstance(offset, int | float) or isinstance(offset, bool):
        raise VlmcError(f"'rope_grid_offset' is {offset!r}, not a number", at=ARGS_AT)
    pool = args.get("global_pool", named.global_pool)
    if pool not in _POOLS:
        at = f"{ARGS_AT}: global_pool"
        raise VlmcError(f"tokens pooled by {pool!r}", at=at, allowed=_POOLS)
    made = replace(named, rope_grid_offset=float(offset), global_pool=str(pool), **changed)
    if made.embed_dim % made.num_heads or made.embed_dim // made.num_heads % 4:
        message = f"{made.embed_dim} numbers do not make {made.num_heads} heads of fours"
        raise VlmcError(message, at=f"{ARGS_AT}: num_heads")
    if 0 in made.grid:
        high, wide = made.img_size
        message = f"a patch of {made.patch_size} pixels in a picture of {wide} x {high}"
        raise VlmcError(message, at=f"{ARGS_AT}: patch_size")
    return made


def _pair(args: Mapping[str, Any], key: str) -> tuple[int, int]:
    value = args[key]
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise VlmcError(f"'{key}' is {value!r}, not a height and a width", at=ARGS_AT)
    high, wide = (whole({key: one}, key, at=ARGS_AT) for one in pair)
    return high, wide
