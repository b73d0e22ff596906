"""LightOnOCR's tower and projection for export; imported lazily, because it needs torch."""

from typing import Any

from torch import Tensor, nn


class EdgedPatchFeatures(nn.Module):
    """A Pixtral tower and what merges its patches, on one picture in patches row by row.

    Mirrors ``PixtralVisionModel.forward`` without a mask, and ``LightOnOcrPatchMerger``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, merged_patches: Tensor
    ) -> Tensor:
        """image_features [tokens, hidden]."""
        tower, project = self.model.vision_encoder, self.model.vision_projection
        size = tower.patch_size
        patches = tower.patch_conv(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        state = tower.ln_pre(patches.unsqueeze(0))
        rotation = tower.patch_positional_embedding(state, patch_positions)
        for layer in tower.transformer.layers:
            state = layer(state, None, position_embeddings=rotation)
        # As `unfold` joins a merged patch: channel by channel.
        blocks = project.norm(state[0])[merged_patches]
        rows = project.patch_merger.merging_layer(blocks.transpose(1, 2).flatten(1))
        features: Tensor = project.linear_2(project.act(project.linear_1(rows)))
        return features
