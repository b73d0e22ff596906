"""Qwen3.5: Qwen3-VL's tower, a decoder of gated delta nets and some gated attention.

Mirrors ``transformers.models.qwen3_5`` (``Qwen3_5ForConditionalGeneration``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlmc.errors import VlmcError
from vlmc.families.configs import section, whole
from vlmc.families.qwen2_vl import decoder
from vlmc.families.qwen3_vl import table_facts
from vlmc.families.spec import Checkpoint, Family, ModelFacts, StateFacts, TextFacts
from vlmc.schema import Json

if TYPE_CHECKING:
    from torch import nn

_AT = "config.json: text_config"


def facts(checkpoint: Checkpoint) -> ModelFacts:
    """What a plan needs of a Qwen3.5 checkpoint.

    Raises:
        VlmcError: As for Qwen3-VL; or a layer is of another kind, or none attends, or heads do not
            share alike.
    """
    return delta_facts(checkpoint, "qwen3_5_text")


def delta_facts(checkpoint: Checkpoint, text_type: str) -> ModelFacts:
    """What a plan needs of a Qwen3.5, whatever its feed-forwards.

    Args:
        checkpoint: Its JSON files.
        text_type: The decoder's kind.

    Raises:
        VlmcError: As ``facts``.
    """
    found = table_facts(checkpoint, text_type, image_token=248056)
    assert found.weights is not None
    config = section(checkpoint.config, "text_config", at="config.json")
    states, more = delta_states(config, found.text)
    language = found.weights.language + more
    return replace(found, states=states, weights=replace(found.weights, language=language))


def delta_states(config: Json, text: TextFacts) -> tuple[tuple[StateFacts, ...], int]:
    """States of a Qwen3.5 decoder's gated delta nets, and what its layers hold beside attention.

    Args:
        config: The text configuration.
        text: Its sizes.

    Returns:
        The states; and the numbers by which the decoder's weights differ from those that are
        counted where every layer attends, without a gate.

    Raises:
        VlmcError: A layer is of another kind, or none attends, or heads do not share alike.
    """
    net, linear = _net(config), _linear_layers(config, text.layers)
    if len(linear) == text.layers:
        raise VlmcError(
            "no layer attends: transformers cannot count the tokens of such a model's cache",
            at=f"{_AT}: layer_types",
        )
    states: list[StateFacts] = []
    for layer in linear:
        states.append(StateFacts(layer, (net.channels, max(1, net.kernel - 1))))
        states.append(StateFacts(layer, (net.heads, net.key, net.value), "matrix"))
    attention = text.head_dim * (2 * text.heads + 2 * text.kv_heads)
    more = len(linear) * (net.weights - attention)
    more += (text.layers - len(linear)) * text.head_dim * text.heads
    return tuple(states), text.hidden * more


@dataclass(frozen=True)
class _Net:
    """Sizes of the gated delta nets: heads of keys and values, their numbers, and the kernel."""

    key_heads: int
    heads: int
    key: int
    value: int
    kernel: int

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key + self.heads * self.value

    @property
    def weights(self) -> int:
        """Numbers in a net's products, by each of the hidden state."""
        return self.channels + 2 * self.heads * self.value + 2 * self.heads


def _net(config: Json) -> _Net:
    found = _Net(
        whole(config, "linear_num_key_heads", 16, at=_AT),
        whole(config, "linear_num_value_heads", 32, at=_AT),
        whole(config, "linear_key_head_dim", 128, at=_AT),
        whole(config, "linear_value_head_dim", 128, at=_AT),
        whole(config, "linear_conv_kernel_dim", 4, at=_AT),
    )
    if found.heads % found.key_heads:
        message = f"{found.heads} value heads cannot share {found.key_heads} key heads"
        raise VlmcError(message, at=f"{_AT}: linear_num_value_heads")
    return found


def _linear_layers(config: Json, layers: int) -> list[int]:
    """The layers that are gated delta nets."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = whole(config, "full_attention_interval", 4, at=_AT)
        return [layer for layer in range(layers) if (layer + 1) % every]
    at, known = f"{_AT}: layer_types", ("full_attention", "linear_attention")
    if not isinstance(kinds, list) or len(kinds) < layers:
        raise VlmcError(f"{kinds!r} does not name the kind of {layers} layers", at=at)
    for kind in kinds[:layers]:
        if kind not in known:
            raise VlmcError(f"a layer is of the kind {kind!r}", at=at, allowed=known)
    return [layer for layer in range(layers) if kinds[layer] == "linear_attention"]


def vision(model: nn.Module) -> nn.Module:
    """The tower with its merger, for one image.

    Takes patches float ``[P, C*T*p*p]``, their places int64 ``[P, 2]``, and the rows of the table
    of positions that each takes, int64 and float ``[P, 4]``; gives features
    ``[P / merge**2, hidden]``. Mirrors ``Qwen3_5VisionModel.forward`` with one segment.
    """
    from vlmc.families.grid_towers import TableGridImageFeatures

    return TableGridImageFeatures(model.model.visual, 0)  # type: ignore[union-attr, arg-type]


FAMILY = Family(
    name="qwen3.5",
    title="Qwen3.5",
    model_types=("qwen3_5",),
    facts=facts,
    vision=vision,
    decoder=decoder,
    example={"patches": 96},
    plain_image="<|vision_start|><|image_pad|><|vision_end|>",
)
