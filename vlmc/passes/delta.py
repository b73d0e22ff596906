"""Gated delta nets while a model is exported: one neutral node for each layer's rule.

Imports torch at its top, as ``vlmc/passes/modules.py`` does; imported inside functions only.
"""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.errors import VlmcError

_VERSION = 1
# What transformers' modules call the rule: for many tokens, and for one.
_RULES = ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")


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


def prepare_delta(model: nn.Module) -> None:
    """Lets every layer that computes the rule emit one node; its forward is otherwise the same."""
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if not set(_RULES).isdisjoint(forward.__code__.co_names):
            names = {**forward.__globals__, **dict.fromkeys(_RULES, gated_delta)}
            copied = FunctionType(
                forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
            )
            copied.__kwdefaults__ = forward.__kwdefaults__
            module.forward = MethodType(copied, module)
