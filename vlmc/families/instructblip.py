"""InstructBLIP: BLIP-2 whose Q-Former reads the prompt too, by a tokenizer of its own.

Mirrors ``transformers.models.instructblip`` (``InstructBlipForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vlmc.bundle.manifest import TensorSpec, VisionText
from vlmc.families.blip_2 import count_qformer, decoder, logits, query_facts
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_QFORMER_AT = f"{_AT}: qformer_config"
_FOLDER = "qformer_tokenizer"
_INPUT = "qformer_input_ids"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an InstructBLIP checkpoint.

    Raises:
        VlmcError: As for BLIP-2.
    """
    qformer = section(checkpoint.config, "qformer_config", at=_AT)
    most = whole(qformer, "max_position_embeddings", 512, at=_QFORMER_AT)
    numbers = count_qformer(checkpoint.config) + _count_text(qformer, most)
    found = query_facts(checkpoint, qformer_weights=numbers)
    text = TensorSpec(name=_INPUT, dtype="int64", shape=(1, "text_tokens"))
    return replace(
        found,
        vision_inputs=(*found.vision_inputs, text),
        vision_text=VisionText(tokenizer=f"processor/{_FOLDER}.json", input=_INPUT, most=most),
    )


def _count_text(qformer: Json, most: int) -> int:
    """Numbers in the tables of the Q-Former's tokens, and in their own feed-forward."""
    width = whole(qformer, "hidden_size", 768, at=_QFORMER_AT)
    layers = whole(qformer, "num_hidden_layers", 12, at=_QFORMER_AT, most=MAX_LAYERS)
    inner = whole(qformer, "intermediate_size", 3072, at=_QFORMER_AT)
    vocab = whole(qformer, "vocab_size", 30522, at=_QFORMER_AT)
    return width * (vocab + most + layers * 2 * inner)


def vision(model: nn.Module) -> nn.Module:
    """Pixels float ``[1, 3, S, S]`` and ids int64 ``[1, T]`` -> ``[queries, hidden]``."""
    from vlmc.families.query_towers import ReadingQFormerFeatures

    return ReadingQFormerFeatures(model)


FAMILY = Family(
    name="instructblip",
    title="InstructBLIP (Vicuna and other decoders)",
    model_types=("instructblip",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"text_tokens": 11},
    plain_image="",
    leading_images=True,
    folders=(_FOLDER,),
    extra_tokens=("<image>",),
    logits=logits,
)
