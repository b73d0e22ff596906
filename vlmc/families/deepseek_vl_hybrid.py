"""DeepSeek-VL 7B: DeepSeek-VL with a second tower, SAM's, that sees a picture four times as large.

Mirrors ``transformers.models.deepseek_vl_hybrid`` (``DeepseekVLHybridForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.deepseek_vl import fixed_facts
from vlmc.families.llava import decoder, decoder_facts, tower_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.families.two_sizes_processor import two_sizes_spec
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_LARGE = "high_res_vision_config"
_LARGE_AT = f"{_AT}: {_LARGE}"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a hybrid DeepSeek-VL checkpoint.

    Raises:
        VlmcError: As for DeepSeek-VL; or the second tower is of another kind.
    """
    config = checkpoint.config
    tower = section(config, "vision_config", at=_AT)
    # All of the last state is read, whatever the tower.
    read = tower_facts(
        {
            "vision_config": {"model_type": "siglip_vision_model", **tower},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        }
    )
    large = section(config, _LARGE, at=_AT)
    word(large, "model_type", "sam_vision_model", ("sam_vision_model",), at=_LARGE_AT)
    text = decoder_facts(config)
    if text.hidden % 2:
        at = f"{_AT}: text_config.hidden_size"
        raise VlmcError(f"{text.hidden} numbers cannot be shared by two towers", at=at)
    wide = 4 * whole(large, "output_channels", 256, at=_LARGE_AT)
    aligner = text.hidden // 2 * (read.features + wide) + text.hidden**2
    images = two_sizes_spec(
        checkpoint.image_processor,
        read.tokens,
        image_size=read.side,
        high_res=whole(large, "image_size", 1024, at=_LARGE_AT),
    )
    weights = read.weights + _count(large) + aligner
    return fixed_facts(checkpoint, read.side, read.tokens, weights, 100015, images)


def _count(large: Json) -> int:
    """Numbers in SAM's tower, its necks and its projection."""
    layers = whole(large, "num_hidden_layers", 12, at=_LARGE_AT, most=MAX_LAYERS)
    if not layers_global(large, layers):
        raise VlmcError("no layer sees the whole picture", at=f"{_LARGE_AT}: global_attn_indexes")
    width = whole(large, "hidden_size", 768, at=_LARGE_AT)
    ratio = large.get("mlp_ratio", 4.0)
    inner = int(width * ratio) if isinstance(ratio, int | float) else 4 * width
    inner = whole(large, "mlp_dim", inner, at=_LARGE_AT)
    patch = whole(large, "patch_size", 16, at=_LARGE_AT)
    grid = whole(large, "image_size", 1024, at=_LARGE_AT) // patch
    out = whole(large, "output_channels", 256, at=_LARGE_AT)
    encoder = width * (layers * (4 * width + 2 * inner) + 3 * patch * patch + grid * grid)
    return encoder + 2 * out * (width + 9 * out) + 9 * (out * 2 * out + 2 * out * 4 * out)


def layers_global(large: Json, layers: int) -> list[int]:
    """SAM's layers that attend to all of a picture; features are read after the first, too.

    Raises:
        VlmcError: They are no numbers of layers.
    """
    found = large.get("global_attn_indexes", [2, 5, 8, 11])
    if not isinstance(found, list) or not all(
        type(at) is int and 0 <= at < layers for at in found[:1]
    ):
        at = f"{_LARGE_AT}: global_attn_indexes"
        raise VlmcError(f"{found!r} names no layers of {layers}", at=at)
    return found


def vision(model: nn.Module) -> nn.Module:
    """Both towers and the aligner, for one image.

    Takes pixels float ``[1, 3, S, S]`` and ``[1, 3, L, L]``, gives features ``[tokens, hidden]``.
    Mirrors ``DeepseekVLHybridModel.get_image_features``.
    """
    from vlmc.families.deepseek_modules import TwoSizesFeatures

    return TwoSizesFeatures(model.model)


FAMILY = Family(
    name="deepseek-vl-hybrid",
    title="DeepSeek-VL 7B",
    model_types=("deepseek_vl_hybrid",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
    own_attention=(_LARGE,),
)
