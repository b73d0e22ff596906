"""Gemma 4: its own tower with pooling; some layers read the keys and values of earlier ones.

Mirrors ``transformers.models.gemma4`` (``Gemma4ForConditionalGeneration``), for text and pictures:
the tower of sounds is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageLayout, MaskSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.paligemma import logits
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import layer_kinds, text_facts
from vlmc.families.token_budget_processor import token_budget_spec
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_SLIDING, _FULL = "sliding_attention", "full_attention"
LAYOUT = ImageLayout(start="{boi_token}", end="{eoi_token}")
MARKS = 2


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Gemma 4 checkpoint.

    Raises:
        VlmcError: It has no tower, tower and processor cut pictures differently, layers share
            keys and values that none has, or the decoder attends both ways in texts too.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    word(found, "model_type", "gemma4_text", ("gemma4_text",), at=_TEXT_AT)
    text = text_facts(found, "gemma4_text")
    if config.get("vision_config") is None:
        raise VlmcError("this model has no vision tower", at=_TOWER_AT)
    tower = section(config, "vision_config", at=_AT)
    merge = whole(tower, "pooling_kernel_size", 3, at=_TOWER_AT)
    images = token_budget_spec(
        checkpoint.image_processor,
        whole(tower, "patch_size", 16, at=_TOWER_AT),
        merge,
        whole(tower, "position_embedding_size", 10240, at=_TOWER_AT),
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
        weights=_count(config, found, tower, text, heads, owners),
        multiples={"patches": merge**2},
        masks=_masks(found, kinds),
        image_layout=LAYOUT,
        owners=owners,
        kv_heads=heads,
    )


def kinds_of(found: Json, layers: int) -> list[str]:
    """The kind of every layer; the last one is made a full one, as the class does."""
    default = [_FULL if (layer + 1) % 6 == 0 else _SLIDING for layer in range(layers)]
    layer_kinds(found, default, (_SLIDING, _FULL), at=_TEXT_AT)
    given = found.get("layer_types")
    kinds = [str(kind) for kind in given] if isinstance(given, list) else default
    if len(kinds) != layers:
        at = f"{_TEXT_AT}: layer_types"
        raise VlmcError(f"{len(kinds)} kinds for {layers} layers", at=at)
    return [*kinds[:-1], _FULL]


def own_heads(found: Json, text: TextFacts, kinds: Sequence[str]) -> dict[int, tuple[int, int]]:
    """Key/value heads of the layers that have others, as ``Gemma4TextConfig`` reads them."""
    at = f"{_TEXT_AT}: per_layer_config"
    if "per_layer_config" in found:
        given = section(found, "per_layer_config", at=_TEXT_AT)
    else:
        own: Json = {"head_dim": whole(found, "global_head_dim", 512, at=_TEXT_AT)}
        if found.get("attention_k_eq_v") and found.get("num_global_key_value_heads") is not None:
            own["num_key_value_heads"] = found["num_global_key_value_heads"]
        given = {str(layer): own for layer, kind in enumerate(kinds) if kind == _FULL}
    heads: dict[int, tuple[int, int]] = {}
    for key, values in ((str(layer), own) for layer, own in given.items()):
        if not key.isdecimal() or int(key) >= text.layers or not isinstance(values, dict):
            raise VlmcError(f"'{key}' is no layer of {text.layers}", at=at)
        count = whole(values, "num_key_value_heads", text.kv_heads, at=f"{at}.{key}")
        size = whole(values, "head_dim", text.head_dim, at=f"{at}.{key}")
        if text.heads % count:
            message = f"{text.heads} attention heads cannot share {count} key/value heads"
            raise VlmcError(message, at=f"{at}.{key}")
        heads[int(key)] = count, size
    return heads


def key_owners(found: Json, kinds: Sequence[str]) -> dict[int, int]:
    """Whose keys and values each of the last layers reads: the last before of its own kind.

    Raises:
        VlmcError: There is none.
    """
    shared = whole(found, "num_kv_shared_layers", 0, at=_TEXT_AT, least=0)
    first = len(kinds) - shared
    own = {kind: layer for layer, kind in enumerate(kinds[: max(first, 0)])}
    owners: dict[int, int] = {}
    for layer in range(max(first, 0), len(kinds)):
        if shared and (set(own) != set(kinds)):
            raise VlmcError(
                f"the last {shared} of {len(kinds)} layers share keys and values that no layer of "
                "their kind has",
                at=f"{_TEXT_AT}: num_kv_shared_layers",
            )
        owners[layer] = own[kinds[layer]]
    return owners


def _masks(found: Json, kinds: Sequence[str]) -> tuple[MaskSpec, ...]:
    """A picture's tokens see each other in sliding layers, where the decoder says so."""
    if not both_ways(found, None):
        return ()
    window = whole(found, "sliding_window", 512, at=_TEXT_AT)
    known = {
        _FULL: MaskSpec(layers=_FULL),
        _SLIDING: MaskSpec(
            layers=_SLIDING, input="sliding_attention_bias", spans="images", window=window
        ),
    }
    return tuple(known[kind] for kind in sorted(set(kinds)))


def both_ways(found: Json, default: str | None) -> bool:
    """Whether a picture's tokens see each other.

    Args:
        found: The text configuration.
        default: ``use_bidirectional_attention`` where it is absent.

    Raises:
        VlmcError: Texts attend both ways too.
    """
    at = f"{_TEXT_AT}: use_bidirectional_attention"
    given = found.get("use_bidirectional_attention", default)
    if given == "all":
        raise VlmcError("a decoder whose texts attend both ways generates nothing", at=at)
    if given is not None:
        word({"it": given}, "it", "vision", ("vision",), at=at)
    return given is not None


def _count(
    config: Json,
    found: Json,
    tower: Json,
    text: TextFacts,
    heads: dict[int, tuple[int, int]],
    owners: dict[int, int],
) -> WeightCounts:
    inner = whole(found, "intermediate_size", 9216, at=_TEXT_AT)
    wide = found.get("use_double_wide_mlp") is True
    small = whole(found, "hidden_size_per_layer_input", 256, at=_TEXT_AT, least=0)
    rows = whole(found, "vocab_size_per_layer_input", 262144, at=_TEXT_AT)
    experts = 0
    if found.get("enable_moe_block") is True:
        of_one = 3 * whole(found, "moe_intermediate_size", at=_TEXT_AT)
        experts = whole(found, "num_experts", at=_TEXT_AT) * (of_one + 1)
    width = 0
    for layer in range(text.layers):
        count, size = heads.get(layer, (text.kv_heads, text.head_dim))
        own = layer not in owners
        width += 2 * size * (text.heads + (count if own else 0))
        width += 3 * inner * (1 if own or not wide else 2) + experts + 3 * small
    language = text.hidden * width
    table = text.vocab * text.hidden
    tied = config.get("tie_word_embeddings") is not False
    side = whole(tower, "hidden_size", 768, at=_TOWER_AT)
    depth = whole(tower, "num_hidden_layers", 16, at=_TOWER_AT, most=MAX_LAYERS)
    size = whole(tower, "head_dim", 64, at=_TOWER_AT)
    queries = whole(tower, "num_attention_heads", 12, at=_TOWER_AT)
    keys = whole(tower, "num_key_value_heads", 12, at=_TOWER_AT)
    block = 2 * size * (queries + keys) + 3 * whole(tower, "intermediate_size", 3072, at=_TOWER_AT)
    places = 2 * whole(tower, "position_embedding_size", 10240, at=_TOWER_AT)
    patch = 3 * whole(tower, "patch_size", 16, at=_TOWER_AT) ** 2
    vision = side * (depth * block + places + patch + text.hidden)
    return WeightCounts(vision, language, table + rows * small * text.layers, 0 if tied else table)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack; layers without keys and values of their own see a step's last token."""
    from vlmc.families.gemma4_modules import prepare_decoder

    return prepare_decoder(model.model.language_model)  # type: ignore[union-attr]


def vision(model: nn.Module) -> nn.Module:
    """Tower, pooling and projection of one picture."""
    from vlmc.families.gemma4_modules import BudgetImageFeatures, prepare_norms

    prepare_norms(model)
    return BudgetImageFeatures(model)


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """What the decoder is given for tokens, per-layer embeddings among it."""
    from vlmc.families.gemma4_modules import token_inputs

    return token_inputs(model, values, ids, is_image)


FAMILY = Family(
    name="gemma4",
    title="Gemma 4",
    model_types=("gemma4",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 54},
    plain_image="{image}",
    logits=logits,
    embeds=embeds,
)
