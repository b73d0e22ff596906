"""Janus and Janus-Pro, understanding pictures; they also draw, which is not served.

Mirrors ``transformers.models.janus`` (``JanusForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.bundle.manifest import ImageLayout
from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole, word
from vlmc.families.deepseek_vl import fixed_facts, vision
from vlmc.families.llava import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_AT = "config.json"
_TOWER_AT = f"{_AT}: vision_config"
# As ``JanusProcessor`` has it.
_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.\n\n"
)


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Janus checkpoint.

    Raises:
        VlmcError: Its processor makes pictures of another size or other tokens than the tower, or
            its aligner other features than the decoder takes.
    """
    tower = section(checkpoint.config, "vision_config", at=_AT)
    word(tower, "model_type", "janus_vision_model", ("janus_vision_model",), at=_TOWER_AT)
    side = whole(tower, "image_size", 384, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 16, at=_TOWER_AT)
    width = whole(tower, "projection_dim", 2048, at=_TOWER_AT)
    found = fixed_facts(checkpoint, side, (side // patch) ** 2, _count(tower, patch, width), 100581)
    if width != found.text.hidden:
        raise VlmcError(
            f"features have {width} numbers, the decoder takes {found.text.hidden}",
            at=f"{_TOWER_AT}: projection_dim",
        )
    system = checkpoint.processor.get("use_default_system_prompt") is True
    return replace(
        found,
        image_layout=ImageLayout(start="{boi_token}", end="{eoi_token}"),
        opening=_SYSTEM if system else "",
        unused_generation=("guidance_scale",),
    )


def _count(tower: Json, patch: int, out: int) -> int:
    """Numbers in tower and aligner."""
    layers = whole(tower, "num_hidden_layers", 24, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1024, at=_TOWER_AT)
    ratio = tower.get("mlp_ratio", 4.0)
    inner = int(width * ratio) if isinstance(ratio, int | float) else 4 * width
    depth = whole(tower, "depth", 2, at=_TOWER_AT)
    encoder = layers * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    return encoder + width * out + (depth - 1) * out * out


FAMILY = Family(
    name="janus",
    title="Janus and Janus-Pro (understanding)",
    model_types=("janus",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={},
    plain_image="{image}",
)
