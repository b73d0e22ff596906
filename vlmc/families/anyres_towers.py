"""Vision wrappers of LLaVA-NeXT and its kin: the tiles of one picture, packed by the host.

Imported lazily by the families' ``vision`` functions, because it needs torch at its top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ProjectedRows(nn.Module):
    """A tower and projector on the tiles of one picture, and the embedding of a line break."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[tiles * rows + 1, hidden] of pixel_values [tiles, 3, S, S]; the line break is last."""
        config, inner = self.model.config, self.model.model
        chosen = config.vision_feature_layer
        # As `select_hidden_states`: only the chosen states are kept.
        states = inner.vision_tower(pixel_values, output_hidden_states=chosen).hidden_states
        layers = [chosen] if isinstance(chosen, int) else chosen
        rows = torch.cat([states[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            rows = rows[:, 1:]
        rows = inner.multi_modal_projector(rows).flatten(0, 1)
        return torch.cat([rows, inner.image_newline[None]])


class PackedImageFeatures(nn.Module):
    """A tower and projector on the tiles of one picture, its rows put in order by the host."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.rows = ProjectedRows(model)

    def forward(self, pixel_values: Tensor, packing: Tensor) -> Tensor:
        """image_features [tokens, hidden] of pixel_values [tiles, 3, S, S], packing [tokens]."""
        rows: Tensor = self.rows(pixel_values)
        return rows[packing]


class BlendedImageFeatures(nn.Module):
    """A tower and projector on the tiles of one picture, its rows blended of four by the host."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.rows = ProjectedRows(model)

    def forward(self, pixel_values: Tensor, packing: Tensor, shares: Tensor) -> Tensor:
        """image_features [tokens, hidden] of tiles, packing [tokens, 4] and shares [tokens, 4]."""
        rows = self.rows(pixel_values)
        # Corner by corner: all four at once would hold four times the features.
        blended: Tensor = rows[packing[:, 0]] * shares[:, 0, None]
        for corner in (1, 2, 3):
            blended = blended + rows[packing[:, corner]] * shares[:, corner, None]
        return blended


class PackedDeepstackFeatures(nn.Module):
    """As ``PackedImageFeatures``, once for each layer of the decoder that takes features.

    Args:
        model: The model.
        sources: For each such layer, the tower's layer and the projector that reads it.
    """

    def __init__(self, model: Any, sources: Sequence[tuple[int, nn.Module]]) -> None:
        super().__init__()
        self.model = model
        self.layers = [layer for layer, _ in sources]
        self.projectors = nn.ModuleList(projector for _, projector in sources)

    def forward(self, pixel_values: Tensor, packing: Tensor) -> tuple[Tensor, Tensor]:
        """image_features [tokens, hidden], all zero, and deepstack_features."""
        config, inner = self.model.config, self.model.model
        states = inner.vision_tower(pixel_values, output_hidden_states=self.layers).hidden_states
        first = int(config.vision_feature_select_strategy == "default")
        added = []
        for layer, projector in zip(self.layers, self.projectors, strict=True):
            rows = projector(states[layer][:, first:]).flatten(0, 1)
            added.append(torch.cat([rows, inner.image_newline[None]])[packing])
        return torch.zeros_like(added[0]), torch.stack(added, dim=1)
