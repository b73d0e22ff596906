"""ERNIE 4.5 VL: Qwen2-VL's tower, a resampler, and experts for texts beside those for pictures.

Mirrors ``transformers.models.ernie4_5_vl_moe`` (``Ernie4_5_VLMoeForConditionalGeneration``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vlmc.errors import VlmcError
from vlmc.families.configs import MAX_LAYERS, section, whole
from vlmc.families.qwen2_vl import grid_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json"
_TEXT_AT = f"{_AT}: text_config"
_TOWER_AT = f"{_AT}: vision_config"
_KINDS = ("dense", "sparse")
# Tokens that are a picture's to the experts, though their embeddings are their own: the processor
# goes by the tokenizer, whatever the configuration says.
_BESIDE = tuple(
    f"{name}_token" for name in ("image_start", "image_end", "video", "video_start", "video_end")
)
_TEXT, _VISION = "text_moe", "vision_moe"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of an ERNIE 4.5 VL checkpoint.

    Raises:
        VlmcError: Tower and processor cut pictures differently, its layers of experts are not
            described, or it merges more than two frames.
    """
    config = checkpoint.config
    decoder = section(config, "text_config", at=_AT)
    tower = section(config, "vision_config", at=_AT)
    if (frames := whole(tower, "temporal_merge_size", 2, at=_TOWER_AT)) != 2:
        raise VlmcError(f"'temporal_merge_size' is {frames}; it can be 2 alone", at=_TOWER_AT)
    # One number of features more than the tower has: the resampler's, which are the decoder's.
    width = whole(decoder, "hidden_size", 2560, at=_TEXT_AT)
    seen = {**tower, "temporal_patch_size": 1, "features": width}
    tied = config.get("tie_word_embeddings", True) is not False
    given = {**config, "vision_config": seen, "tie_word_embeddings": tied}
    found = grid_facts(
        replace(checkpoint, config=given),
        "ernie4_5_vl_moe_text",
        width_key="features",
        count=_count_vision,
        image_token=100295,
    )
    assert found.weights is not None
    extra = _expert_weights(decoder, found.text.layers, width)
    language = found.weights.language + extra
    return replace(
        found,
        weights=replace(found.weights, language=language),
        beside_tokens=_BESIDE,
    )


def _layer_kinds(config: Json, layers: int) -> list[str]:
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return ["dense"] + ["sparse"] * (layers - 1)
    if not isinstance(kinds, list) or len(kinds) < layers or set(kinds) - set(_KINDS):
        at = f"{_TEXT_AT}: mlp_layer_types"
        raise VlmcError(f"{kinds!r} is not one of {_KINDS} for each of {layers} layers", at=at)
    return kinds[:layers]


def _expert_weights(config: Json, layers: int, hidden: int) -> int:
    """Numbers in the experts, less those of the feed-forwards in whose place they are."""
    sparse = _layer_kinds(config, layers).count("sparse")
    experts = whole(config, "moe_num_experts", 64, at=_TEXT_AT)
    whole(config, "moe_k", 6, at=_TEXT_AT, most=experts)
    shared = whole(config, "moe_num_shared_experts", 2, at=_TEXT_AT, least=0)
    inner = config.get("moe_intermediate_size")
    inner = [1536, 512] if inner is None else inner
    at = f"{_TEXT_AT}: moe_intermediate_size"
    if not isinstance(inner, list) or len(inner) != 2 or any(type(n) is not int for n in inner):
        raise VlmcError(f"{inner!r} are not the widths of text's and pictures' experts", at=at)
    broad = whole(config, "intermediate_size", 12288, at=_TEXT_AT)
    wide: int = experts * sum(inner) + shared * inner[0] - broad
    return sparse * hidden * (3 * wide + 2 * experts)


def _count_vision(tower: Json, hidden: int) -> int:
    depth = whole(tower, "depth", 32, at=_TOWER_AT, most=MAX_LAYERS)
    width = whole(tower, "hidden_size", 1280, at=_TOWER_AT)
    inner = whole(tower, "intermediate_size", 4 * 1280, at=_TOWER_AT)
    patch = whole(tower, "patch_size", 14, at=_TOWER_AT)
    merged = width * whole(tower, "spatial_merge_size", 2, at=_TOWER_AT) ** 2
    blocks = depth * width * (4 * width + 2 * inner) + 3 * patch * patch * width
    return blocks + merged * (5 * merged + hidden)


def tensors(index: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """The checkpoint's tensors as the model has them: experts of either kind apart.

    A released checkpoint numbers text's experts first, then those of pictures, and lays the
    routers' matrices the other way round; transformers saves it so, too.

    Raises:
        VlmcError: There is an odd number of experts.
    """
    found: dict[str, Any] = {}
    experts: dict[str, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for name, ref in index.items():
        home, _, leaf = name.rpartition(".mlp.")
        home += ".mlp"
        if leaf == "gate.weight" or leaf == "gate.weight_1":
            key = f"{home}.{_VISION if leaf.endswith('_1') else _TEXT}.gate.weight"
            found[key] = replace(ref, name=key, shape=ref.shape[::-1], turned=True)
        elif leaf == "moe_statics.e_score_correction_bias":
            size = ref.nbytes // 2
            for at, kind in enumerate((_TEXT, _VISION)):
                key = f"{home}.{kind}.gate.{leaf}"
                shape = (1, *ref.shape[1:])
                begin = ref.begin + at * size
                found[key] = replace(ref, name=key, shape=shape, begin=begin, nbytes=size)
        elif leaf.startswith("experts.") and leaf.endswith(".weight"):
            _, number, matrix, _ = leaf.split(".")
            experts[home][int(number)][matrix] = ref
        elif leaf in ("experts.gate_up_proj", "experts.down_proj") and ref.stacked:
            # All are alike, and were laid together.
            found |= _halves(home, leaf.partition(".")[2], ref.stacked)
        else:
            found[name] = ref
    for home, numbered in experts.items():
        each = [numbered[at] for at in sorted(numbered)]
        for leaf, names in (
            ("gate_up_proj", ("gate_proj", "up_proj")),
            ("down_proj", ("down_proj",)),
        ):
            found |= _halves(home, leaf, [tuple(one[name] for name in names) for one in each])
    return dict(sorted(found.items()))


def _halves(home: str, leaf: str, rows: Any) -> dict[str, Any]:
    """Text's experts and those of pictures, each stacked: [E, n, m]."""
    if len(rows) % 2:
        first = rows[0][0]
        raise VlmcError(f"'{first.name}' is one of {len(rows)} experts", at=first.path.name)
    half, found = len(rows) // 2, {}
    for kind, chosen in ((_TEXT, rows[:half]), (_VISION, rows[half:])):
        first = chosen[0][0]
        tall, wide = first.shape
        key = f"{home}.{kind}.experts.{leaf}"
        found[key] = replace(
            first,
            name=key,
            shape=(half, tall * len(chosen[0]), wide),
            nbytes=sum(ref.nbytes for row in chosen for ref in row),
            stacked=tuple(chosen),
        )
    return found


def decoder(model: nn.Module) -> nn.Module:
    """The decoder stack, ``Ernie4_5_VLMoeModel.language_model``."""
    from vlmc.families.ernie_modules import experts_of_each

    stack: nn.Module = model.model.language_model  # type: ignore[union-attr, assignment]
    for layer in stack.layers:  # type: ignore[union-attr]
        if hasattr(layer.mlp, _TEXT):
            for part in (layer.mlp.text_moe, layer.mlp.vision_moe):
                part.experts.skips = True
            layer.mlp.forward = partial(experts_of_each, layer.mlp)
    return stack


def embeds(model: Any, values: Any, ids: Any, is_image: Any) -> dict[str, Any]:
    """Embeddings, and which tokens are pictures' to the experts: bool [B, S]."""
    return {"inputs_embeds": values, "moe_mm_token_type_ids": is_image}


def vision(model: nn.Module) -> nn.Module:
    """The tower with its resampler, for one image.

    Takes patches float ``[P, 3*p*p]`` and their places int64 ``[P, 2]``, gives features
    ``[P / merge**2, hidden]``.
    """
    from vlmc.families.ernie_modules import ResampledGridFeatures

    return ResampledGridFeatures(model.model)


FAMILY = Family(
    name="ernie4.5-vl",
    title="ERNIE 4.5 VL",
    model_types=("ernie4_5_vl_moe",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|IMAGE_START|>{image}<|IMAGE_END|>",
    embeds=embeds,
    tensors=tensors,
)
