"""transformers' wrapper of timm's models holds a family's tower where timm is not installed."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, TimmWrapperConfig

from vlmc.errors import VlmcError
from vlmc.passes.timm_towers import own_towers


class Doubled(nn.Module):
    """Twice its pictures, by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(2.0))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def test_the_wrapper_holds_our_tower_while_it_is_made() -> None:
    asked: list[Any] = []

    def make(architecture: str, **arguments: Any) -> nn.Module:
        asked.append((architecture, arguments))
        return Doubled()

    config = TimmWrapperConfig(architecture="some_tower", model_args={"width": 3})
    with own_towers(make):
        model = AutoModel.from_config(config)
    assert asked == [("some_tower", {"width": 3})]
    assert [name for name, _ in model.named_parameters()] == ["timm_model.by"]
    given = torch.rand(1, 3, 4, 4)
    made = model(pixel_values=given, do_pooling=False)
    assert torch.equal(made.last_hidden_state, given * 2)


def test_afterwards_it_asks_timm_again() -> None:
    def refuse(architecture: str) -> nn.Module:
        raise VlmcError(f"no {architecture}")

    config = TimmWrapperConfig(architecture="some_tower")
    with pytest.raises(VlmcError, match="no some_tower"), own_towers(refuse):
        AutoModel.from_config(config)
    with own_towers(None), pytest.raises((ImportError, RuntimeError), match="timm"):
        AutoModel.from_config(config)
