"""Llama 4: pictures on a canvas of tiles; layers that attend in chunks, some without positions.

Mirrors ``transformers.models.llama4`` (``Llama4ForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageLayout, MaskSpec, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.canvas_processor import canvas_spec
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import layer_kinds, text_facts
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_CHUNKED, _FULL = "chunked_attention", "full_attention"
# The processor writes these words, whatever tokens its own file names.
_LAYOUT = ImageLayout(
    placeholder="<|image|>",
    start="<|image_start|>",
    between="<|tile_x_separator|>",
    row_end="<|tile_y_separator|>",
    whole="<|image|>",
    end="<|image_end|>",
)
_MARKS = 3


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Llama 4 checkpoint.

    Raises:
        VlmcError: Tower and processor disagree on the size or the tokens of a tile.
    """
    config = checkpoint.config
    decoder = section(config, "text_config", at=_AT)
    word(decoder, "model_type", "llama4_text", ("llama4_text",), at=_TEXT_AT)
    text = text_facts(decoder, "llama4_text")
    tower = section(config, "vision_config", at=_AT)
    side = whole(tower, "image_size", 448, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    merge = _merge(tower, side // patch)
    _check_adapter(tower, merge)
    tokens = (side // patch // merge) ** 2
    said = _said(checkpoint.processor, side)
    if said != tokens:
        raise VlmcError(
            f"the processor counts {said} tokens for a tile, the model makes {tokens}",
            at="processor_config.json: patch_size",
        )
    most = checkpoint.image_bounds.get("max_tiles")
    images = canvas_spec(checkpoint.image_processor, tokens, image_size=side, max_tiles=most)

    def counted(height: int, width: int) -> int:
        # Every tile of several has a mark of its own.
        found = image_tokens(height, width, images)
        return found + _MARKS + (found // tokens - 1)

    key = "image_token_id" if config.get("image_token_id") is not None else "image_token_index"
    return ModelFacts(
        text=text,
        image_token_id=whole(config, key, 200092, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=counted,
        min_image_tokens=tokens,
        weights=_count(config, decoder, tower, text, merge),
        image_layout=_LAYOUT,
        masks=_masks(decoder, text.layers),
    )


def _merge(tower: Json, side: int) -> int:
    """Patches along the squares that the pixel shuffle merges."""
    ratio = tower.get("pixel_shuffle_ratio", 0.5)
    if isinstance(ratio, float | int) and 1e-3 < ratio <= 1:
        merge = round(1 / ratio)
        if ratio == 1 / merge and side >= merge and side % merge == 0:
            return merge
    message = f"{ratio!r} does not divide a tile of {side} x {side} patches into whole squares"
    raise VlmcError(message, at=f"{_TOWER_AT}: pixel_shuffle_ratio")


def _check_adapter(tower: Json, merge: int) -> None:
    """The adapter takes merged patches, and its two layers fit each other."""
    width = whole(tower, "hidden_size", 768, at=_TOWER_AT) * merge**2
    inner = whole(tower, "intermediate_size", 5632, at=_TOWER_AT)
    made = whole(tower, "projector_input_dim", 4096, at=_TOWER_AT)
    taken = whole(tower, "projector_output_dim", 4096, at=_TOWER_AT)
    for key, found, wanted in (("intermediate_size", inner, width), ("projector", made, taken)):
        if found != wanted:
            raise VlmcError(
                f"the adapter meets {found} where {wanted} fit", at=f"{_TOWER_AT}: {key}"
            )


def _said(processor: Json, side: int) -> int:
    """Tokens of a tile as ``Llama4Processor`` counts them."""
    at = "processor_config.json"
    patch = whole(processor, "patch_size", 14, at=at)
    ratio = processor.get("pixel_shuffle_ratio")
    ratio = 0.5 if ratio is None else ratio
    if not isinstance(ratio, float | int) or not 1e-3 < ratio <= 1:
        raise VlmcError(f"{ratio!r} is no ratio", at=f"{at}: pixel_shuffle_ratio")
    return int((side // patch) ** 2 // round(1.0 / (ratio**2)))


def _masks(decoder: Json, layers: int) -> tuple[MaskSpec, ...]:
    """Layers with positions attend inside chunks, unless the configuration says otherwise."""
    interval = whole(decoder, "no_rope_layer_interval", 4, at=_TEXT_AT)
    marks = decoder.get("no_rope_layers") or [(at + 1) % interval for at in range(layers)]
    if not isinstance(marks, list):
        raise VlmcError(f"{marks!r} is no list", at=f"{_TEXT_AT}: no_rope_layers")
    default = [_CHUNKED if mark else _FULL for mark in marks]
    chunk = whole(decoder, "attention_chunk_size", 8192, at=_TEXT_AT)
    known = {
        _FULL: MaskSpec(layers=_FULL),
        _CHUNKED: MaskSpec(layers=_CHUNKED, input="chunked_attention_bias", chunk=chunk),
    }
    return tuple(known[kind] for kind in layer_kinds(decoder, default, known, at=_TEXT_AT))


def _count(config: Json, decoder: Json, tower: Json, text: TextFacts, merge: int) -> WeightCounts:
    width = whole(tower, "hidden_size", 768, at=_TOWER_AT)
    depth = whole(tower, "num_hidden_layers", 34, at=_TOWER_AT, most=MAX_LAYERS)
    inner = whole(tower, "intermediate_size", 5632, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    out = whole(tower, "projector_output_dim", 4096, at=_TOWER_AT)
    adapter = inner * whole(tower, "projector_input_dim", 4096, at=_TOWER_AT) + out * out
    vision = depth * width * (4 * width + 2 * inner) + 3 * patch * patch * width + adapter
    vision += whole(tower, "vision_output_dim", 7680, at=_TOWER_AT) * text.hidden
    step = whole(decoder, "interleave_moe_layer_step", 1, at=_TEXT_AT)
    sparse = text.layers // step
    experts = 1 + whole(decoder, "num_local_experts", 16, at=_TEXT_AT)
    narrow = whole(decoder, "intermediate_size", 8192, at=_TEXT_AT)
    broad = whole(decoder, "intermediate_size_mlp", 16384, at=_TEXT_AT)
    heads = text.layers * text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    feed = 3 * (sparse * experts * narrow + (text.layers - sparse) * broad)
    table = text.vocab * text.hidden
    tied = config.get("tie_word_embeddings") is True
    return WeightCounts(vision, text.hidden * (heads + feed), table, 0 if tied else table)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Llama4ForCausalLM.model``, its rotation written in real numbers."""
    from vlmc.families.llama4_modules import RealRotationDecoder

    return RealRotationDecoder(model.language_model.model)  # type: ignore[union-attr]


def vision(model: nn.Module) -> nn.Module:
    """Tower and projector: float ``[tiles, 3, S, S]`` -> features ``[tokens, hidden]``."""
    from vlmc.families.llama4_modules import CanvasFeatures

    return CanvasFeatures(model)


FAMILY = Family(
    name="llama4",
    title="Llama 4",
    model_types=("llama4",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="<|image|>",
)
