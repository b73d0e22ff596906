"""KOSMOS-2: latent queries that read a CLIP-like tower once, sinusoidal positions, boxes in words.

Mirrors ``transformers.models.kosmos2`` (``Kosmos2ForConditionalGeneration``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.image_processors import fixed_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a KOSMOS-2 checkpoint.

    Raises:
        VlmcError: Its processor makes pictures of another size than the tower takes, or a size
            makes no sense.
    """
    config = checkpoint.config
    found = section(config, "text_config", at=_AT)
    text = _text(found)
    tower = section(config, "vision_config", at=_AT)
    tokens = whole(config, "latent_query_num", 64, at=_AT)
    side = whole(tower, "image_size", 224, at=_TOWER_AT)
    images = fixed_spec(checkpoint.image_processor, tokens, image_size=side)
    pad = whole(found, "pad_token_id", 1, at=_TEXT_AT, least=0)
    tied = any(holder.get("tie_word_embeddings", True) is not False for holder in (config, found))
    table = text.vocab * text.hidden
    return ModelFacts(
        text=text,
        image_token_id=None,
        images=images,
        positions=PositionSpec(scheme="sequential", options={"start": pad + 1, "skipped": pad}),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images),
        min_image_tokens=tokens,
        weights=WeightCounts(
            vision=_count_tower(tower, tokens, text.hidden),
            language=_count_layers(found, text),
            embedding=table,
            head=0 if tied else table,
        ),
        max_images=1,
        opening="{bos_token}",
        ends=_ends(found),
    )


def _text(found: Json) -> TextFacts:
    """The decoder's sizes, under the names that ``Kosmos2TextConfig`` gives them."""
    hidden = whole(found, "embed_dim", 2048, at=_TEXT_AT)
    heads = whole(found, "attention_heads", 32, at=_TEXT_AT)
    if hidden % heads:
        raise VlmcError(f"embed_dim {hidden} does not divide into {heads} heads", at=_TEXT_AT)
    if hidden < 4:
        raise VlmcError(f"embed_dim {hidden} is too small for positions", at=_TEXT_AT)
    return TextFacts(
        model_type="kosmos_2_text_model",
        layers=whole(found, "layers", 24, at=_TEXT_AT, most=MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        vocab=whole(found, "vocab_size", 65037, at=_TEXT_AT),
        max_positions=whole(found, "max_position_embeddings", 2048, at=_TEXT_AT),
    )


def _ends(found: Json) -> tuple[int, ...]:
    """``eos_token_id`` of the text configuration: ``generate`` is the decoder's own."""
    value = found.get("eos_token_id", 2)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(whole({"id": one}, "id", at=f"{_TEXT_AT}: eos_token_id", least=0) for one in ids)


def _count_layers(found: Json, text: TextFacts) -> int:
    inner = whole(found, "ffn_dim", 8192, at=_TEXT_AT)
    return text.layers * text.hidden * (4 * text.hidden + 2 * inner)


def _count_tower(tower: Json, latents: int, out: int) -> int:
    """Numbers in the tower, and in the projection with its one attention."""
    layers = whole(tower, "num_hidden_layers", 24, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 4096, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    encoder = layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    return encoder + out * (width + latents + 4 * out)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Kosmos2TextForCausalLM.model``, on the host's positions."""
    from vlmc.families.kosmos2_modules import SinusoidalDecoder

    return SinusoidalDecoder(model.text_model.model)  # type: ignore[union-attr]


def vision(model: nn.Module) -> nn.Module:
    """Tower and latent queries: pixels float ``[1, 3, S, S]`` -> features ``[latents, hidden]``."""
    from vlmc.families.kosmos2_modules import LatentFeatures

    return LatentFeatures(model)


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """What ``SinusoidalDecoder`` takes: which tokens have a position depends on their ids."""
    return {"inputs_embeds": values, "token_ids": ids}


FAMILY = Family(
    name="kosmos-2",
    title="KOSMOS-2",
    model_types=("kosmos-2",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    embeds=embeds,
    example={},
    plain_image="",
    special_tokens=False,
    image_token="<image>",
    image_frame=("<image>", "</image>"),
    leading_images=True,
    leading_text="<image> ",
    numbered_after="unk_token",
)
