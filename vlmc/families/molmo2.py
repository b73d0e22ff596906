"""Molmo 2: overlapping crops, pooled by attention; image tokens of a prompt all see each other.

Mirrors ``transformers.models.molmo2`` (``Molmo2ForConditionalGeneration``), for text and pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageLayout, MaskSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.overlap_processor import overlap_spec
from vlmc.families.packed import unpacked
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, overlap, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_ADAPTER_AT = f"{_AT}: adapter_config"
_PROCESSOR = "processor_config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Molmo 2 checkpoint.

    Raises:
        VlmcError: Tower, adapter and processor do not fit each other, or a size makes no sense.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    word(found, "model_type", "molmo2_text", ("molmo2_text",), at=_TEXT_AT)
    text = text_facts(found, "molmo2_text")
    old = config.get("vision_config") is None
    tower = section(config, "vit_config" if old else "vision_config", at=_AT)
    side, patch = _sizes(tower)
    images = overlap_spec(
        checkpoint.image_processor,
        image_size=side,
        patch=patch,
        max_tiles=checkpoint.image_bounds.get("max_tiles"),
    )
    # As text: there a list may stand for a tuple.
    shape = overlap.Options.model_validate_json(json.dumps(images.options))
    whole_rows, whole_columns = overlap.cut(1, 1, shape).whole
    layout, marks = _layout(checkpoint, whole_rows)

    def counted(height: int, width: int) -> int:
        cut = overlap.cut(height, width, shape)
        columns = whole_rows * bool(layout.first_end) + cut.large[0] * bool(layout.tile_end)
        return image_tokens(height, width, images) + columns + 4

    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_patch_id", 151938, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=counted,
        min_image_tokens=2 * whole_rows * whole_columns,
        weights=_count(config, found, tower, text),
        masks=(MaskSpec(input="attention_bias", spans="together", marks=marks),),
        image_layout=layout,
        opening=_begin(checkpoint.tokenizer_config),
        opening_once=True,
        token_ids=text.vocab + whole(found, "additional_vocab_size", 128, at=_TEXT_AT, least=0),
    )


def _sizes(tower: Json) -> tuple[int, int]:
    """Side of a crop and of a patch, in pixels, under their new names or their old ones."""
    patch = whole(
        tower, "image_patch_size", whole(tower, "patch_size", 14, at=_TOWER_AT), at=_TOWER_AT
    )
    given = tower.get("image_default_input_size") or tower.get("image_size") or [378, 378]
    if not isinstance(given, list) or len(given) != 2 or given[0] != given[1]:
        raise VlmcError(f"{given!r} is no square", at=f"{_TOWER_AT}: image_size")
    side = whole({"image_size": given[0]}, "image_size", at=_TOWER_AT)
    places = tower.get("image_num_pos") or tower.get("num_position_embeddings")
    if places is not None and places != (side // patch) ** 2:
        raise VlmcError(
            f"{places} positions for {side // patch} x {side // patch} patches",
            at=f"{_TOWER_AT}: num_position_embeddings",
        )
    return side, patch


def _layout(checkpoint: Checkpoint, first_rows: int) -> tuple[ImageLayout, tuple[int, int]]:
    """As ``Molmo2Processor.replace_image_token`` writes it; marks before and after the patches."""

    def flag(key: str, default: bool | None) -> bool | None:
        value = checkpoint.processor.get(key, default)
        if value is not None and not isinstance(value, bool):
            raise VlmcError(f"{value!r} is neither true nor false", at=f"{_PROCESSOR}: {key}")
        return value

    columns = bool(flag("image_use_col_tokens", True))
    single = flag("use_single_crop_col_tokens", None)
    first_end = "<im_col>" if (columns if single is None else single) else ""
    low = flag("use_single_crop_start_token", True)
    end = "<im_col>" if columns else ""
    layout = ImageLayout(
        placeholder=_token(checkpoint.tokenizer_config, "image_token") or "<|image|>",
        start="<low_res_im_start>" if low else "<im_start>",
        first_rows=first_rows,
        first_end=first_end,
        after_first="<im_end><im_start>",
        tile_end=end,
        end=f"{end}<im_end>",
    )
    return layout, (1, 2 if columns else 1)


def _token(given: Json, name: str) -> str | None:
    """A special token's text in ``tokenizer_config.json``."""
    named = given.get("extra_special_tokens")
    value = {**(named if isinstance(named, dict) else {}), **given}.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _begin(given: Json) -> str:
    """What a prompt begins with, as ``Molmo2Processor.__call__`` has it."""
    return _token(given, "bos_token") or _token(given, "eos_token") or ""


def _count(config: Json, found: Json, tower: Json, text: TextFacts) -> WeightCounts:
    old = config.get("vision_config") is None
    adapter = section(config, "adapter_config", at=_AT)
    width = whole(tower, "hidden_size", 1152, at=_TOWER_AT)
    depth = whole(tower, "num_hidden_layers", 25, at=_TOWER_AT, most=MAX_LAYERS)
    layers = adapter.get("vit_layers") or adapter.get("vision_feature_layer") or [24, 18]
    if not isinstance(layers, list) or not all(isinstance(at, int) for at in layers):
        at = f"{_ADAPTER_AT}: vision_feature_layer"
        raise VlmcError(f"{layers!r} is not a list of layers", at=at)
    if not all(-depth <= at < depth for at in layers):
        at = f"{_ADAPTER_AT}: vision_feature_layer"
        raise VlmcError(f"{layers} are not layers of {depth}", at=at)
    if old:  # the released weights end with the deepest layer that is read
        depth = max(at % depth for at in layers) + 1
    heads = whole(tower, "num_attention_heads", 16, at=_TOWER_AT)
    keys = whole(tower, "num_key_value_heads", 16, at=_TOWER_AT)
    head = whole(tower, "head_dim", 72, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 4304, at=_TOWER_AT)
    side, patch = _sizes(tower)
    rows = 3 * patch**2 + (side // patch) ** 2
    vision = width * (depth * (2 * head * (heads + keys) + 2 * inner) + rows)
    made = whole(adapter, "hidden_size", 1152, at=_ADAPTER_AT)
    heads = whole(adapter, "num_attention_heads", 16, at=_ADAPTER_AT)
    keys = whole(adapter, "num_key_value_heads", 16, at=_ADAPTER_AT)
    head = whole(adapter, "head_dim", 72, at=_ADAPTER_AT)
    inner = whole(adapter, "intermediate_size", 18944, at=_ADAPTER_AT)
    out = whole(adapter, "text_hidden_size", 3584, at=_ADAPTER_AT)
    if out != text.hidden:
        message = f"the adapter makes rows of {out}, the decoder takes {text.hidden}"
        raise VlmcError(message, at=f"{_ADAPTER_AT}: text_hidden_size")
    vision += head * (len(layers) * made * (heads + 2 * keys) + made * heads)
    vision += inner * (2 * made + out)
    language, table, top = text_weights(found, text, tied=config.get("tie_word_embeddings") is True)
    more = whole(found, "additional_vocab_size", 128, at=_TEXT_AT, least=0) * text.hidden
    return WeightCounts(vision, language, table + more, top)


def tensors(index: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The checkpoint's tensors as the model has them: projections apart, the embedding in one.

    transformers stores them the other way round, as the released checkpoints do.

    Raises:
        VlmcError: A packed projection has another number of rows.
    """
    text = facts.text
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    packed = {
        "self_attn.att_proj": (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)),
        "mlp.ff_proj": (("up_proj", None), ("gate_proj", None)),
    }
    found: dict[str, Any] = {}
    for name, ref in index.items():
        kind = next((key for key in packed if f".{key}." in name), None)
        if kind is None:
            found[name] = ref
            continue
        home = kind.partition(".")[0]
        parts = [
            (name.replace(kind, f"{home}.{leaf}"), size or ref.shape[0] // 2)
            for leaf, size in packed[kind]
        ]
        found |= unpacked(ref, parts)
    tables = [name for name in found if name.endswith(("wte.embedding", "wte.new_embedding"))]
    if len(tables) == 2:
        first, second = (found.pop(name) for name in sorted(tables))
        key = first.name.replace("wte.embedding", "embed_tokens.weight")
        shape = (first.shape[0] + second.shape[0], *first.shape[1:])
        size = first.nbytes + second.nbytes
        found[key] = replace(first, name=key, shape=shape, nbytes=size, parts=(first, second))
    return dict(sorted(found.items()))


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Molmo2Model.language_model``."""
    return model.model.language_model  # type: ignore[union-attr,return-value]


def vision(model: nn.Module) -> nn.Module:
    """Tower and adapter of one picture's crops."""
    from vlmc.families.molmo2_modules import PooledImageFeatures

    return PooledImageFeatures(model)


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """Image features are added to the embedding of their placeholder."""
    import torch

    place = torch.full_like(ids[:1, :1], model.config.image_patch_id)
    placeholder = model.get_input_embeddings()(place)
    added = torch.where(is_image[..., None], placeholder, torch.zeros_like(placeholder))
    return {"inputs_embeds": values + added}


FAMILY = Family(
    name="molmo2",
    title="Molmo 2",
    model_types=("molmo2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"crops": 3, "tokens": 11},
    plain_image="{image}",
    embeds=embeds,
    tensors=tensors,
)
