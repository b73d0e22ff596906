"""Chameleon: a picture becomes codes of a codebook, and those tokens of the vocabulary.

Mirrors ``transformers.models.chameleon`` (``ChameleonForConditionalGeneration``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import ImageLayout, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.image_processors import fixed_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import image_tokens, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

_AT = "config.json"
_CODES_AT = f"{_AT}: vq_config"
_MAP_AT = f"{_AT}: vocabulary_map"
_PROCESSOR = "processor_config.json: image_seq_length"
# Digits of a code in the name of its token, and the letter that ends it.
_CODE = re.compile(r"IMGIMG([A-J0-9]+).")
# As ``ChameleonProcessor`` puts them around a picture, where the tokenizer names no others.
_MARKS = ("{boi_token|<racm3:break>}", "{eoi_token|<eoss>}")


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Chameleon checkpoint.

    Raises:
        VlmcError: Its processor counts other tokens than its encoder makes codes, or codes have
            no tokens.
    """
    config = checkpoint.config
    text = text_facts(config, "chameleon", at=_AT)
    tokens = whole(checkpoint.processor, "image_seq_length", 1024, at=_PROCESSOR)
    images = fixed_spec(checkpoint.image_processor, tokens)
    height, width = (int(side) for side in vision_inputs(images)[0].shape[-2:])
    codes, levels = section(config, "vq_config", at=_AT), _levels(config)
    # Each level but the last halves the picture; an odd side loses its last place.
    halved = 2 ** (len(levels) - 1)
    if (made := (height // halved) * (width // halved)) != tokens:
        raise VlmcError(
            f"the processor counts {tokens} tokens for a picture, the model makes {made}",
            at=_PROCESSOR,
        )
    for key, default, only in (("in_channels", 3, 3), ("double_latent", False, False)):
        if codes.get(key, default) != only:
            raise VlmcError(f"'{key}' is {codes[key]!r}, not {only!r}", at=_CODES_AT)
    return ModelFacts(
        text=text,
        image_token_id=_image_token_id(config),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: image_tokens(height, width, images) + len(_MARKS),
        min_image_tokens=tokens,
        weights=_count(config, codes, levels),
        image_layout=ImageLayout(start=_MARKS[0], end=_MARKS[1]),
        closing="{sep_token|None}",
        looks_up_tokens=True,
    )


def _levels(config: Json) -> list[int]:
    """How often its base channels each level of the encoder has."""
    value = section(config, "vq_config", at=_AT).get("channel_multiplier")
    value = [1, 1, 2, 2, 4] if value is None else value
    if not isinstance(value, list) or not value or any(type(n) is not int for n in value):
        raise VlmcError(f"{value!r} is no list of numbers", at=f"{_CODES_AT}: channel_multiplier")
    return value


def _image_token_id(config: Json) -> int:
    """The placeholder's id, once the tokens of codes are known to be some.

    Raises:
        VlmcError: There is no ``<image>``, or a code that is no number.
    """
    tokens = section(config, "vocabulary_map", at=_AT)
    codes = [name for name in tokens if name.startswith("IMGIMG")]
    for name in codes:
        if not _CODE.fullmatch(name):
            raise VlmcError(f"'{name}' names no code", at=_MAP_AT)
        whole(tokens, name, at=_MAP_AT, least=0)
    if not codes:
        raise VlmcError("no code has a token", at=_MAP_AT, hint="such tokens begin with IMGIMG")
    return whole(tokens, "<image>", at=_MAP_AT, least=0)


def _count(config: Json, codes: Json, levels: list[int]) -> WeightCounts:
    base = whole(codes, "base_channels", 128, at=_CODES_AT)
    blocks = whole(codes, "num_res_blocks", 2, at=_CODES_AT, most=MAX_LAYERS)
    latent = whole(codes, "latent_channels", 256, at=_CODES_AT)
    size = whole(codes, "embed_dim", 256, at=_CODES_AT)
    seen, side = codes.get("attn_resolutions"), whole(codes, "resolution", 512, at=_CODES_AT)
    vision, before = 27 * base, base
    for at, times in enumerate(levels):
        width = base * times
        vision += 9 * (before * width + (2 * blocks - 1) * width**2)
        vision += 9 * width**2 if at < len(levels) - 1 else 0
        attends = isinstance(seen, list) and side // 2**at in seen
        vision += 4 * blocks * width**2 if attends else 0
        before = width
    vision += (4 * 9 + 4) * before**2 + 9 * before * latent + latent * size
    vision += size * whole(codes, "num_embeddings", 8192, at=_CODES_AT)
    text = text_facts(config, "chameleon", at=_AT)
    tied = config.get("tie_word_embeddings") is True
    language, embedding, head = text_weights(config, text, tied=tied)
    return WeightCounts(vision, language, embedding, head)


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``ChameleonModel`` itself."""
    return model.model  # type: ignore[return-value]


def vision(model: nn.Module) -> nn.Module:
    """Encoder and codebook: pixels float ``[1, 3, H, W]`` -> rows of embeddings of its codes.

    Mirrors ``ChameleonModel.get_image_features`` for one picture.
    """
    from vlmc.families.chameleon_modules import CodeFeatures

    return CodeFeatures(model)


def logits(model: Any, values: Tensor) -> Tensor:
    """An answer is text: the tokens of codes are ruled out."""
    from vlmc.families.chameleon_modules import without_codes

    return without_codes(model, values)


FAMILY = Family(
    name="chameleon",
    title="Chameleon (answers in text)",
    model_types=("chameleon",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
    logits=logits,
)
