"""Fuyu: patches of a picture go through one linear layer into a Persimmon decoder.

Mirrors ``transformers.models.fuyu`` (``FuyuForCausalLM``) and ``FuyuProcessor``, which writes one
picture ahead of a prompt, row by row, and takes no more.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import ImageSpec, PictureAhead, PositionSpec
from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.llava import decoder
from vlmc.families.patch_rows_processor import patch_rows_spec
from vlmc.families.spec import Checkpoint, Family, ModelFacts, TextFacts, WeightCounts
from vlmc.families.text import text_facts, text_weights
from vlmc.runtime.images import patch_rows, vision_inputs
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_PERSIMMON = "persimmon"
# A row's end and the picture's, around a picture of one patch.
_SMALLEST = 3


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Fuyu checkpoint.

    Raises:
        VlmcError: Its pictures have no three channels, or its processor cuts other patches.
    """
    config = checkpoint.config
    # On the hub the decoder's keys lie at the top level.
    found = section(config, "text_config", at=_AT)
    found, at = (found, f"{_AT}: text_config") if found else (config, _AT)
    kind = _PERSIMMON if found is config else str(found.get("model_type") or _PERSIMMON)
    text = text_facts(found, kind, at=at)
    if (channels := whole(config, "num_channels", 3, at=_AT)) != 3:
        raise VlmcError(f"pictures of {channels} channels", at=f"{_AT}: num_channels")
    numbers = whole(config, "patch_size", 30, at=_AT) ** 2 * channels
    images = patch_rows_spec(checkpoint.image_processor, numbers)
    return ModelFacts(
        text=text,
        image_token_id=whole(config, "image_token_id", 71011, at=_AT, least=0),
        images=images,
        positions=PositionSpec(scheme="sequential"),
        vision_inputs=vision_inputs(images),
        image_tokens=lambda height, width: _prompt_tokens(height, width, images),
        min_image_tokens=_SMALLEST,
        max_images=1,
        weights=_count(config, found, text, numbers),
    )


def _prompt_tokens(height: int, width: int, images: ImageSpec) -> int:
    """Tokens of a picture with the mark after each of its rows, and the one after all."""
    # As text: there a list may stand for a tuple.
    options = patch_rows.Options.model_validate_json(json.dumps(images.options))
    rows, columns = patch_rows.grid(height, width, options)
    return rows * (columns + 1) + 1


def _count(config: Json, found: Json, text: TextFacts, numbers: int) -> WeightCounts:
    tied = config.get("tie_word_embeddings") is True
    language, embedding, head = text_weights(found, text, tied=tied)
    return WeightCounts(numbers * text.hidden, language, embedding, head)


def vision(model: nn.Module) -> nn.Module:
    """The linear layer, for one picture: patches float ``[P, 3*p*p]`` -> features ``[P, hidden]``.

    Mirrors ``FuyuModel.get_image_features``.
    """
    return model.model.vision_embed_tokens  # type: ignore[union-attr,return-value]


FAMILY = Family(
    name="fuyu",
    title="Fuyu",
    model_types=("fuyu",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="",
    ahead=PictureAhead(image="|SPEAKER|", row_end="|NEWLINE|", end="<s>", text_end="<0x04>"),
)
