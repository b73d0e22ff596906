"""What layers with states emit while they are exported, and what is left as it was."""

from __future__ import annotations

import pytest

from tests.checkpoints.delta import qwen3_5
from vlmc.errors import VlmcError


def test_transformers_own_modules_stay_what_they_are(tmp_path):
    from transformers.models.qwen3_5 import modeling_qwen3_5

    from vlmc.passes.recurrent import gated_delta, prepare_recurrent
    from vlmc.passes.transform import build_module

    model = build_module(qwen3_5(tmp_path), "eager")
    prepare_recurrent(model)
    nets = [m for m in model.modules() if isinstance(m, modeling_qwen3_5.Qwen3_5GatedDeltaNet)]
    changed = [module for module in model.modules() if "forward" in vars(module)]
    assert changed == nets
    rule = "torch_chunk_gated_delta_rule"
    assert all(net.forward.__globals__[rule] is gated_delta for net in nets)
    assert vars(modeling_qwen3_5)[rule] is not gated_delta


def test_keys_of_any_length_are_refused():
    import torch

    from vlmc.passes.recurrent import gated_delta

    keys, values, shares = torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2)
    matrix = torch.ones(1, 2, 4, 4)
    with pytest.raises(VlmcError, match="no unit vectors"):
        gated_delta(keys, keys, values, g=shares, beta=shares, initial_state=matrix)
