"""Kimi K2.5: pictures padded to whole patches, MoonViT, DeepSeek V3's decoder.

Mirrors ``transformers.models.kimi_k25`` (``Kimi_K25ForConditionalGeneration``), for pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.packed import halved, unpacked
from vlmc.families.padded_grid_processor import padded_grid_spec
from vlmc.families.qwen2_vl import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_VISION = f"{_AT}: vision_config"
_TOWER = "kimi_k25_vision"
_FIRST_NAME = "kimi_k2"  # of its decoder, when it was released


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Kimi K2.5 checkpoint.

    Raises:
        VlmcError: Tower, projection and processor disagree on a size, or merged patches or the
            table of positions are no squares.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    word(tower, "model_type", _TOWER, (_TOWER,), at=_VISION)
    width = whole(tower, "hidden_size", 1152, at=_VISION)
    if whole(config, "projection_hidden_size", 1152, at=_AT) != width:
        message = f"the tower's features have {width} numbers"
        raise VlmcError(message, at=f"{_AT}: projection_hidden_size")
    side = whole(tower, "pos_emb_height", 64, at=_VISION)
    if whole(tower, "pos_emb_width", 64, at=_VISION) != side:
        raise VlmcError("the table of positions is no square", at=f"{_VISION}: pos_emb_width")
    merge = _merge(tower)
    images = padded_grid_spec(
        checkpoint.image_processor, whole(tower, "patch_size", 14, at=_VISION), merge, side
    )
    found = section(config, "text_config", at=_AT)
    kind = str(found.get("model_type") or "deepseek_v3")
    text = text_facts(found, "deepseek_v3" if kind == _FIRST_NAME else kind)
    tied = config.get("tie_word_embeddings", True) is True
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 163605, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=1,
        weights=WeightCounts(
            _count(tower, merge, text.hidden), *text_weights(found, text, tied=tied)
        ),
        multiples={"patches": merge**2},
        tower_heads=whole(tower, "num_attention_heads", 16, at=_VISION),
    )


def _merge(tower: Json) -> int:
    """The side, in patches, of what becomes a feature row."""
    value = tower.get("merge_kernel_size")
    given = [2, 2] if value is None else value
    if not isinstance(given, list) or len(given) != 2 or given[0] != given[1]:
        at = f"{_VISION}: merge_kernel_size"
        raise VlmcError(f"{given!r} is no square of patches", at=at)
    return whole({"merge_kernel_size": given[0]}, "merge_kernel_size", at=_VISION)


def _count(tower: Json, merge: int, hidden: int) -> int:
    layers = whole(tower, "num_hidden_layers", 27, at=_VISION, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1152, at=_VISION)
    inner = whole(tower, "intermediate_size", 4304, at=_VISION)
    patch = whole(tower, "patch_size", 14, at=_VISION)
    places = whole(tower, "pos_emb_height", 64, at=_VISION) ** 2
    merged = width * merge**2
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + places)
    return encoder + merged * (merged + hidden)


def vision(model: nn.Module) -> nn.Module:
    """The tower with its projection, for one image.

    Takes patches float ``[P, 3*p*p]``, their places int64 ``[P, 2]``, and the rows of the table of
    positions that each takes, int64 and float ``[P, 16]``; gives features
    ``[P / merge**2, hidden]``.
    """
    from vlmc.families.kimi_modules import KimiImageFeatures

    return KimiImageFeatures(model)


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """What the decoder is given for tokens: in an answer, an image's token is the first one."""
    from vlmc.families.kimi_modules import token_inputs

    return token_inputs(model, values, ids, is_image)


def tensors(index: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The checkpoint's tensors as the model has them: queries, keys and values of the tower apart.

    transformers stores them the other way round, as the released checkpoint does: queries and keys
    are rotated in pairs of neighbours there. A decoder whose names it takes for the tower's fares
    the same, the tower's heads and all.
    """
    found: dict[str, Any] = {}
    for name, ref in index.items():
        if "wqkv." not in name:
            found[name] = ref
            continue
        names = [name.replace("wqkv.", f"attn.{one}_proj.") for one in "qkv"]
        apart = unpacked(ref, [(one, ref.shape[0] // 3) for one in names])
        found |= apart
        found |= {one: halved(apart[one], facts.tower_heads) for one in names[:2]}
    return dict(sorted(found.items()))


FAMILY = Family(
    name="kimi-k2.5",
    title="Kimi K2.5",
    model_types=("kimi_k25",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="{image}",
    embeds=embeds,
    tensors=tensors,
)
