"""Mixtures of experts while a model is exported: one neutral node for each layer's experts.

Imports torch at its top, as ``vlmc/passes/modules.py`` does; imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef

NAME = "vlmc"
_VERSION = 1
_WEIGHTS = ("gate_up_proj", "down_proj")
# transformers' classes of activations, and what the neutral node calls them.
_GATES = {"SiLU": "silu", "SiLUActivation": "silu", "GELUTanh": "gelu_tanh"}


def experts(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """The experts function registered for ``vlmc``: emits one neutral ``vlmc::Experts``.

    Args:
        module: The experts: ``gate_up_proj`` [E, 2I, H] and ``down_proj`` [E, H, I], or both with
            the last axes the other way round, as a checkpoint may store them.
        hidden_states: [T, H].
        top_k_index: The experts each token chose, int64 [T, k]; -1 for none, where the module
            ``skips``.
        top_k_weights: Their shares, float [T, k].

    Returns:
        The sum of each token's experts, [T, H].

    Raises:
        VlmcError: They are experts of another kind.
    """
    plain = module.has_gate and not module.has_bias and not module.has_post_expert_norm
    gate = _GATES.get(type(getattr(module, "act_fn", None)).__name__)
    same = type(module)._apply_gate is _default_apply_gate
    if not (plain and gate and same and module.is_concatenated):
        raise VlmcError(
            f"{type(module).__name__}: experts of this kind are not supported yet",
            hint="those with a gate by SiLU or GELU (tanh) and no biases are",
        )
    hidden = hidden_states.shape[-1]
    inner = module.down_proj[0].numel() // hidden
    skips = {"skips": 1} if getattr(module, "skips", False) else {}
    out: Tensor = torch.onnx.ops.symbolic(
        "vlmc::Experts",
        [hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj],
        {
            "hidden": int(hidden),
            "inner": int(inner),
            "gate": gate,
            "transposed": int(getattr(module, "stored_transposed", False) != module.is_transposed),
            **skips,
        },
        dtype=hidden_states.dtype,
        shape=hidden_states.shape,
        version=_VERSION,
    )
    return out


def prepare_experts(
    model: nn.Module, index: Mapping[str, TensorRef], matched: Mapping[str, str]
) -> None:
    """Lets every layer of experts emit one node, with its matrices as they are stored.

    Raises:
        VlmcError: One of a layer's two tensors is stored transposed, the other is not.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "_is_expert_parallel"):
            continue
        ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
        module.config._experts_implementation_internal = NAME
        turned = [_turn(module, name, leaf, index, matched) for leaf in _WEIGHTS]
        if any(turned) and not all(turned):
            raise VlmcError(f"one of the tensors of '{name}' is transposed, the other is not")
        module.stored_transposed = all(turned)


def _turn(
    module: nn.Module,
    name: str,
    leaf: str,
    index: Mapping[str, TensorRef],
    matched: Mapping[str, str],
) -> bool:
    """Gives a parameter the shape it is stored in; whether that is a transposed one."""
    parameter = module._parameters.get(leaf)
    key = matched.get(f"{name}.{leaf}")
    if parameter is None or key is None or index[key].shape == tuple(parameter.shape):
        return False
    if index[key].shape != tuple(parameter.transpose(1, 2).shape):
        return False  # `parameter_sources` says what is wrong
    module._parameters[leaf] = nn.Parameter(
        torch.empty_like(parameter.transpose(1, 2)), requires_grad=False
    )
    return True
