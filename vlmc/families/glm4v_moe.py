"""GLM-4.5V: GLM-4.1V's tower, and a decoder of experts chosen in groups beside shared ones.

Mirrors ``transformers.models.glm4v_moe`` (``Glm4vMoeForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import replace

from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.glm4v import sampled_facts, vision
from vlmc.families.qwen2_vl import decoder
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

_AT = "config.json: text_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a GLM-4.5V checkpoint.

    Raises:
        VlmcError: As for GLM-4.1V; or tokens cannot choose their experts as the file says.
    """
    found = sampled_facts(checkpoint, "glm4v_moe_text", image_token=151363)
    assert found.weights is not None
    config = section(checkpoint.config, "text_config", at="config.json")
    extra = _expert_weights(config, found.text.layers, found.text.hidden)
    language = found.weights.language + extra
    return replace(found, weights=replace(found.weights, language=language))


def _expert_weights(config: Json, layers: int, hidden: int) -> int:
    """Numbers in the experts, less those of the feed-forwards in whose place they are."""
    key = "num_local_experts" if "num_local_experts" in config else "n_routed_experts"
    experts = whole(config, key, 128, at=_AT)
    groups = whole(config, "n_group", 1, at=_AT)
    chosen = whole(config, "num_experts_per_tok", 8, at=_AT)
    of = experts // groups * whole(config, "topk_group", 1, at=_AT)
    # A group counts as much as its best two.
    if experts % groups or experts // groups < 2 or not chosen <= of <= experts:
        raise VlmcError(
            f"a token cannot choose {chosen} of {experts} experts in {groups} groups", at=_AT
        )
    shared = whole(config, "n_shared_experts", 1, at=_AT)
    inner = whole(config, "moe_intermediate_size", 1408, at=_AT)
    whole_inner = whole(config, "intermediate_size", 10944, at=_AT)
    mixed = layers - min(layers, whole(config, "first_k_dense_replace", 1, at=_AT, least=0))
    return mixed * hidden * (3 * ((experts + shared) * inner - whole_inner) + experts)


FAMILY = Family(
    name="glm4v-moe",
    title="GLM-4.5V and 4.6V",
    model_types=("glm4v_moe",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|begin_of_image|><|image|><|end_of_image|>",
)
