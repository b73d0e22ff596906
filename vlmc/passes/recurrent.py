"""Layers with states while a model is exported: one neutral node for a convolution, and a rule.

Imports torch at its top, as ``vlmc/passes/modules.py`` does; imported inside functions only.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from vlmc.errors import VlmcError

_VERSION = 1


def short_conv(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """Stands for a causal convolution in a module's forward: emits one ``vlmc::ShortConv``.

    Args:
        hidden_states: A step's inputs behind those before it that they need, [B, C, L].
        weight: Each channel's, [C, K].
        bias: [C].
        activation: Its name in transformers' table.

    Returns:
        [B, C, L - K + 1]: of the first K - 1, whose own past is not there, none are given.
    """
    channels, size = weight.shape
    out: Tensor = torch.onnx.ops.symbolic(
        "vlmc::ShortConv",
        [hidden_states, weight, *([] if bias is None else [bias])],
        {"channels": channels, "kernel_size": size},
        dtype=hidden_states.dtype,
        shape=(*hidden_states.shape[:-1], hidden_states.shape[-1] - size + 1),
        version=_VERSION,
    )
    return out if activation is None else ACT2FN[activation](out)


def gated_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Stands for the rule in a module's forward: emits one neutral ``vlmc::GatedDelta``.

    Args:
        query: [B, S, G, K].
        key: As ``query``; each of the G heads serves H / G consecutive ones of the values.
        value: [B, S, H, V].
        g: The logarithm of each token's decay, [B, S, H].
        beta: Each token's share, [B, S, H].
        initial_state: The matrices before the step, [B, H, K, V].
        use_qk_l2norm_in_kernel: Whether queries and keys are made unit vectors.

    Returns:
        What the tokens read, [B, S, H, V], and the matrices after the step.

    Raises:
        VlmcError: Queries and keys are taken as they are.
    """
    if not use_qk_l2norm_in_kernel:
        raise VlmcError("a gated delta rule of keys that are no unit vectors is not supported yet")
    packed = [x.flatten(2) for x in (query, key, value)]
    out, after = torch.onnx.ops.symbolic_multi_out(
        "vlmc::GatedDelta",
        [*packed, g, beta, initial_state],
        {
            "num_heads": value.shape[2],
            "key_heads": key.shape[2],
            "key_size": key.shape[3],
            "value_size": value.shape[3],
        },
        dtypes=[value.dtype, initial_state.dtype],
        shapes=[packed[2].shape, initial_state.shape],
        version=_VERSION,
    )
    return out.reshape(value.shape), after


# What the forwards of transformers' modules call them; the rule's names are for many and for one.
_REPLACED: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": short_conv,
    "torch_chunk_gated_delta_rule": gated_delta,
    "torch_recurrent_gated_delta_rule": gated_delta,
}


def prepare_recurrent(model: nn.Module) -> None:
    """Lets every layer with states emit these nodes; its forward is otherwise the same."""
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if not _REPLACED.keys().isdisjoint(forward.__code__.co_names):
            module.forward = MethodType(_copied(forward), module)


@functools.cache
def _copied(forward: FunctionType) -> FunctionType:
    """A forward that calls these; the same one for all layers, which are alike then."""
    names = {**forward.__globals__, **_REPLACED}
    copied = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    return copied
