"""Qianfan-OCR: InternVL's tiles and tower, a Qwen 3 decoder, and a placeholder that is no token.

Mirrors ``transformers.models.qianfan_ocr`` (``QianfanOCRForConditionalGeneration``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlmc.bundle.manifest import ImageLayout
from vlmc.errors import VlmcError
from vlmc.families.internvl import decoder, tiled_facts, vision
from vlmc.families.packed import unpacked
from vlmc.families.spec import Checkpoint, Family, ModelFacts

_PROCESSOR = "processor_config.json"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qianfan-OCR checkpoint.

    Raises:
        VlmcError: As for InternVL; or the processor's own placeholder is no text.
    """
    found = tiled_facts(checkpoint, "qianfan_ocr_vision", "qwen3", tied=False)
    written = checkpoint.processor.get("image_placeholder_token", "<image>")
    if not isinstance(written, str) or not written:
        message = f"{written!r} is no placeholder for an image"
        raise VlmcError(message, at=f"{_PROCESSOR}: image_placeholder_token")
    return replace(found, image_layout=ImageLayout(placeholder=written))


def tensors(index: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The checkpoint's tensors as the model has them: queries, keys and values of the tower apart.

    transformers stores them the other way round, as the released checkpoint does.
    """
    found: dict[str, Any] = {}
    for name, ref in index.items():
        if ".attn.qkv." not in name:
            found[name] = ref
            continue
        names = [name.replace(".attn.qkv.", f".attention.{one}_proj.") for one in "qkv"]
        found |= unpacked(ref, [(one, ref.shape[0] // 3) for one in names])
    return dict(sorted(found.items()))


FAMILY = Family(
    name="qianfan-ocr",
    title="Qianfan-OCR",
    model_types=("qianfan_ocr",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"tiles": 3},
    plain_image="{image}\n",
    image_frame=("start_image_token", "end_image_token"),
    tensors=tensors,
)
