"""Qwen3-VL with a decoder of experts.

Mirrors ``transformers.models.qwen3_vl_moe`` (``Qwen3VLMoeForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.qwen2_vl import decoder
from vlmc.families.qwen3_vl import deepstack_facts, vision
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_AT = "config.json: text_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen3-VL checkpoint with experts.

    Raises:
        VlmcError: As for Qwen3-VL; or the layers with experts are not numbers.
    """
    found = deepstack_facts(checkpoint, "qwen3_vl_moe_text")
    assert found.weights is not None
    decoder_config = section(checkpoint.config, "text_config", at="config.json")
    extra = expert_weights(decoder_config, found.text.layers, found.text.hidden)
    language = found.weights.language + extra
    return replace(found, weights=replace(found.weights, language=language))


def expert_weights(
    config: Json,
    layers: int,
    hidden: int,
    *,
    key: str | None = None,
    sizes: tuple[int, int, int] = (60, 1408, 5632),
) -> int:
    """Numbers in the experts, less those of the feed-forwards in whose place they are.

    Args:
        config: The decoder's configuration.
        layers: How many layers it has.
        hidden: The width of a token.
        key: What it calls the number of experts; None: either name.
        sizes: The defaults of that number, of an expert's width, and of a feed-forward's.

    Raises:
        VlmcError: The layers without experts are not a list of numbers, or a size makes no sense.
    """
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise VlmcError(f"{dense!r} is not a list of layers", at=f"{_AT}: mlp_only_layers")
    if key is None:
        key = "num_local_experts" if "num_local_experts" in config else "num_experts"
    experts = whole(config, key, sizes[0], at=_AT, least=0)
    step = whole(config, "decoder_sparse_step", 1, at=_AT)
    inner = whole(config, "moe_intermediate_size", sizes[1], at=_AT)
    whole_inner = whole(config, "intermediate_size", sizes[2], at=_AT)
    mixed = [n for n in range(layers) if n not in dense and (n + 1) % step == 0 and experts]
    return len(mixed) * hidden * (3 * (experts * inner - whole_inner) + experts)


FAMILY = Family(
    name="qwen3-vl-moe",
    title="Qwen3-VL with experts",
    model_types=("qwen3_vl_moe",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
