"""Towers of the package timm without it, in transformers' models; imported lazily.

transformers' ``TimmWrapperModel`` asks timm for its tower, and timm asks for torchvision.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn
from transformers import AutoModel, PreTrainedModel, TimmWrapperConfig
from transformers.models.timm_wrapper.modeling_timm_wrapper import (
    TimmWrapperModel,
    TimmWrapperPreTrainedModel,
)

from vlmc.families.fastvit import read_fastvit
from vlmc.families.fastvit_modules import FastVitTower
from vlmc.families.perception_encoder import read_perception_encoder
from vlmc.families.perception_modules import PerceptionTower


class OwnTimmModel(TimmWrapperModel):  # type: ignore[misc]
    """``TimmWrapperModel`` around a tower of ours; its ``forward`` is transformers'.

    Attributes:
        matrices: Whether convolutions of one pixel are matrices, see ``FastVitTower``.
    """

    matrices: ClassVar[bool] = False
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        # Not its parent's, which asks for timm.
        TimmWrapperPreTrainedModel.__init__(self, config)
        self.features_only = False
        self.timm_model = _tower(config, matrices=self.matrices)
        PreTrainedModel.post_init(self)


class _Matrices(OwnTimmModel):
    matrices = True


def _tower(config: Any, *, matrices: bool) -> nn.Module:
    """The tower of a vision configuration, as checkpoints name its parameters.

    Raises:
        VlmcError: There is none of that name.
    """
    vision = config.to_dict()
    if str(vision["architecture"]).startswith("vit_pe_"):
        return PerceptionTower(read_perception_encoder(vision), config)
    return FastVitTower(read_fastvit(vision), config, matrices=matrices)


def register(*, matrices: bool = True) -> None:
    """Has transformers' models make their timm towers of ours; idempotent.

    Args:
        matrices: As a build reads the checkpoint (``matrices_of``); else as it is stored.
    """
    made = _Matrices if matrices else OwnTimmModel
    AutoModel.register(TimmWrapperConfig, made, exist_ok=True)
