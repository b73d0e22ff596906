"""Gemma 4 without towers: patches are embedded as they are, before Gemma 4's decoder.

Mirrors ``transformers.models.gemma4_unified`` (``Gemma4UnifiedForConditionalGeneration``), for text
and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import MaskSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole, word
from vlmc.families.gemma4 import (
    LAYOUT,
    MARKS,
    both_ways,
    decoder,
    embeds,
    key_owners,
    kinds_of,
    own_heads,
)
from vlmc.families.paligemma import logits
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts
from vlmc.families.token_budget_processor import token_budget_spec
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_VISION_AT = f"{_AT}: vision_config"
_KIND = "gemma4_unified_text"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Gemma 4 Unified checkpoint.

    Raises:
        VlmcError: It embeds no pictures, model and processor cut them differently, layers share
            keys and values that none has, or the decoder attends both ways in texts too.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    word(found, "model_type", _KIND, (_KIND,), at=_TEXT_AT)
    text = text_facts(found, _KIND)
    if config.get("vision_config") is None:
        raise VlmcError("this model takes no pictures", at=_VISION_AT)
    embedder = section(config, "vision_config", at=_AT)
    width = whole(embedder, "mm_embed_dim", 3840, at=_VISION_AT)
    if whole(embedder, "output_proj_dims", 3840, at=_VISION_AT) != width:
        message = f"'output_proj_dims' is not 'mm_embed_dim', {width}"
        raise VlmcError(message, at=_VISION_AT)
    images = token_budget_spec(
        checkpoint.image_processor,
        whole(embedder, "patch_size", 16, at=_VISION_AT),
        whole(embedder, "pooling_kernel_size", 3, at=_VISION_AT),
        whole(embedder, "mm_posemb_size", 1120, at=_VISION_AT),
    )
    kinds = kinds_of(found, text.layers)
    heads = own_heads(found, text, kinds)
    owners = key_owners(found, kinds)
    # The budget is spent by halves at least: a side is cut by less than its length.
    most: Any = images.options["max_tokens"]
    least = most // 2 if images.options["resize"] else 1
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 258880, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images) + MARKS,
        min_image_tokens=least + MARKS,
        weights=_count(config, found, embedder, text, heads, owners),
        masks=_masks(found, kinds),
        image_layout=LAYOUT,
        owners=owners,
        kv_heads=heads,
    )


def _masks(found: Json, kinds: Sequence[str]) -> tuple[MaskSpec, ...]:
    """A picture's tokens see each other in all layers, whatever the window, if they do at all."""
    if not both_ways(found, "vision"):
        return ()
    window = whole(found, "sliding_window", 1024, at=_TEXT_AT)
    known = {
        "full_attention": MaskSpec(layers="full_attention", input="attention_bias", spans="images"),
        "sliding_attention": MaskSpec(
            layers="sliding_attention",
            input="sliding_attention_bias",
            spans="images",
            window=window,
            window_in_spans=False,
        ),
    }
    return tuple(known[kind] for kind in sorted(set(kinds)))


def create_masks(**given: Any) -> dict[str, Any]:
    """The masks by kind of layer, as ``Gemma4UnifiedModel.forward`` makes them."""
    from vlmc.families.gemma4_modules import unified_masks

    return unified_masks(**given)


def _count(
    config: Json,
    found: Json,
    embedder: Json,
    text: TextFacts,
    heads: dict[int, tuple[int, int]],
    owners: dict[int, int],
) -> WeightCounts:
    inner = whole(found, "intermediate_size", 9216, at=_TEXT_AT)
    wide = found.get("use_double_wide_mlp") is True
    once = found.get("attention_k_eq_v") is True
    numbers = 0
    for layer in range(text.layers):
        count, size = heads.get(layer, (text.kv_heads, text.head_dim))
        own = layer not in owners
        # The full layers' keys may be their values too.
        matrices = 0 if not own else 1 if once and layer in heads else 2
        numbers += size * (2 * text.heads + matrices * count)
        numbers += 3 * inner * (1 if own or not wide else 2)
    patch = whole(embedder, "patch_size", 16, at=_VISION_AT)
    patch *= whole(embedder, "pooling_kernel_size", 3, at=_VISION_AT)
    places = 2 * whole(embedder, "mm_posemb_size", 1120, at=_VISION_AT)
    width = whole(embedder, "mm_embed_dim", 3840, at=_VISION_AT)
    table = text.vocab * text.hidden
    tied = config.get("tie_word_embeddings") is not False
    return WeightCounts(
        vision=width * (3 * patch * patch + places + text.hidden),
        language=text.hidden * numbers,
        embedding=table,
        head=0 if tied else table,
    )


def vision(model: nn.Module) -> nn.Module:
    """Embedding and projection of one picture's patches.

    Takes merged patches float ``[P, 3*m*m]`` and their places int64 ``[P, 2]``, gives features
    ``[P, hidden]``.
    """
    from vlmc.families.gemma4_modules import UnifiedImageFeatures, prepare_norms

    prepare_norms(model, "Gemma4UnifiedRMSNorm")
    return UnifiedImageFeatures(model)


FAMILY = Family(
    name="gemma4-unified",
    title="Gemma 4 Unified",
    model_types=("gemma4_unified",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 54},
    plain_image="{image}",
    logits=logits,
    embeds=embeds,
    create_masks=create_masks,
)
