"""Towers of the package timm without it: which module of ours a configuration names.

Imported lazily, because the modules need torch at their top.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmc.families.fastvit import read_fastvit
from vlmc.families.fastvit_modules import FastVitTower
from vlmc.families.perception_encoder import read_perception_encoder
from vlmc.families.perception_modules import PerceptionTower


def make_tower(config: Any, *, matrices: bool = True) -> nn.Module:
    """The tower of a ``TimmWrapperConfig``, as checkpoints name its parameters.

    Args:
        config: The vision configuration.
        matrices: As a build reads the checkpoint (``matrices_of``); else as it is stored.

    Raises:
        VlmcError: There is none of that name.
    """
    vision = config.to_dict()
    if str(vision["architecture"]).startswith("vit_pe_"):
        return PerceptionTower(read_perception_encoder(vision), config)
    return FastVitTower(read_fastvit(vision), config, matrices=matrices)


def stored_tower(config: Any) -> nn.Module:
    """``make_tower``, its parameters as checkpoints store them."""
    return make_tower(config, matrices=False)
