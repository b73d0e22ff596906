"""Vision wrappers families share: patches of a picture near its own size in, image features out.

Imported lazily, as ``towers.py`` is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# Scores of empty slots; far below any other, and a number in float16 too.
UNSEEN = -1e4


class OneSegment:
    """Stands for ``cu_seqlens`` of one picture: one attention segment that spans all patches.

    Towers that attend per segment split their sequence by the list it gives.
    """

    def __init__(self, length: Any) -> None:
        self.length = length

    def __getitem__(self, _: slice) -> OneSegment:
        return self

    def __sub__(self, _: OneSegment) -> OneSegment:
        return self

    def tolist(self) -> list[Any]:
        """The lengths of the segments."""
        return [self.length]


# So that layers which are given it can be told alike.
pytree.register_pytree_node(
    OneSegment, lambda one: ([one.length], None), lambda sizes, _: OneSegment(*sizes)
)


class GridImageFeatures(nn.Module):
    """A native-resolution tower on one picture: flat patches and their (row, column) places."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        features: Tensor = self.visual(
            pixel_values,
            grid_thw=None,
            position_ids=patch_positions,
            cu_seqlens=OneSegment(pixel_values.shape[0]),
            max_seqlen=None,
        ).pooler_output
        return features


class TableGridImageFeatures(nn.Module):
    """As ``GridImageFeatures``, for a tower of learned positions, with or without deep-stack.

    Args:
        visual: The tower.
        deepstack: How many of the tower's deep-stack features are read.
    """

    def __init__(self, visual: nn.Module, deepstack: int) -> None:
        super().__init__()
        self.visual = visual
        self.deepstack = deepstack

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        table_rows: Tensor,
        table_weights: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """image_features [tokens, hidden], and deepstack_features [tokens, deepstack, hidden]."""
        out = self.visual(
            pixel_values,
            grid_thw=None,
            position_ids=patch_positions,
            interp_indices=table_rows,
            interp_weights=table_weights,
            cu_seqlens=OneSegment(pixel_values.shape[0]),
            max_seqlen=None,
        )
        features: Tensor = out.pooler_output
        if not self.deepstack:
            return features
        return features, torch.stack(out.deepstack_features[: self.deepstack], dim=1)


class Glm4vImageFeatures(nn.Module):
    """As ``GridImageFeatures``, for GLM-4V's tower: positions are mixed where the host says."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        table_rows: Tensor,
        table_weights: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        visual = self.visual
        hidden = visual.post_conv_layernorm(visual.patch_embed(pixel_values))
        rotation = visual.rotary_pos_emb(hidden, patch_positions)
        # One tap at a time: all at once would take as many times the memory.
        for tap in range(table_rows.shape[1]):
            rows = visual.embeddings.position_embedding(table_rows[:, tap])
            hidden = hidden + rows * table_weights[:, tap : tap + 1]
        whole = OneSegment(pixel_values.shape[0])
        for block in visual.blocks:
            hidden = block(hidden, cu_seqlens=whole, max_seqlen=None, position_embeddings=rotation)
        merge = visual.spatial_merge_size
        blocks = visual.post_layernorm(hidden).reshape(-1, merge, merge, hidden.shape[-1])
        features: Tensor = visual.merger(visual.downsample(blocks.permute(0, 3, 1, 2)).flatten(1))
        return features


class PaddleImageFeatures(nn.Module):
    """PaddleOCR-VL's tower and projector on one picture, in flat patches of merged-block order."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        table_rows: Tensor,
        table_weights: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower, project = self.model.model.visual.vision_model, self.model.model.projector
        embed, size = tower.embeddings, tower.embeddings.patch_size
        hidden = embed.patch_embedding(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        mixed = (embed.position_embedding(table_rows) * table_weights[:, :, None]).sum(1)
        hidden = hidden + mixed
        rotation = tower.encoder.rotary_pos_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        for layer in tower.encoder.layers:
            hidden = layer(hidden, cu_seqlens=whole, max_seqlen=None, position_embeddings=rotation)
        rows = project.pre_norm(tower.post_layernorm(hidden))
        rows = rows.reshape(-1, project.linear_1.in_features)
        features: Tensor = project.linear_2(project.act(project.linear_1(rows)))
        return features


class SpreadImageFeatures(nn.Module):
    """Cosmos 3 Edge's tower and projector on one picture, in flat patches of merged-block order.

    Mirrors ``Cosmos3EdgeVisionModel.forward``, which stretches or shrinks its table of positions
    over each picture's grid: here the host says what a patch takes of it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, table_weights: Tensor) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower = self.model.model.visual
        embed = tower.embeddings
        hidden = embed.patch_embedding(pixel_values)
        hidden = hidden + table_weights @ embed.position_embedding.weight
        whole = OneSegment(pixel_values.shape[0])
        for layer in tower.encoder.layers:
            hidden = layer(hidden, cu_seqlens=whole, max_seqlen=None)
        features: Tensor = self.model.model.projector(tower.post_layernorm(hidden))
        return features


class CenteredImageFeatures(nn.Module):
    """Video-LLaMA 3's tower and projector on one picture; the middle of a merged patch is read."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, patch_positions: Tensor, center_patches: Tensor
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower = self.model.model.vision_model
        hidden = tower.embeddings(pixel_values)
        rotation = tower.rotary_pos_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        for layer in tower.encoder.layers:
            hidden = layer(hidden, cu_seqlens=whole, max_seqlen=None, position_embeddings=rotation)
        middle = tower.post_layernorm(hidden)[center_patches].mean(1)
        features: Tensor = self.model.model.projector(middle)
        return features


class NaflexImageFeatures(nn.Module):
    """A SigLIP 2 tower on the tiles of one picture, of any number of patches each.

    Mirrors ``Lfm2VlModel.get_image_features``: every tile is a row of a batch, its empty slots
    masked.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        table_weights: Tensor,
        tile_patches: Tensor,
        patch_slots: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower, project = self.model.model.vision_tower, self.model.model.multi_modal_projector
        embed = tower.embeddings
        hidden = embed.patch_embedding(pixel_values)
        hidden = hidden + table_weights @ embed.position_embedding.weight
        unseen = torch.where(tile_patches < 0, UNSEEN, 0.0)[:, None, None]
        hidden = hidden[tile_patches.clamp(min=0)]
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=unseen).last_hidden_state
        hidden = tower.post_layernorm(hidden).flatten(0, 1)[patch_slots]
        # A merged patch's patches are neighbours, as `pixel_unshuffle` joins them.
        rows = hidden.reshape(-1, project.factor**2 * hidden.shape[-1])
        if project.use_layer_norm:
            rows = project.layer_norm(rows)
        features: Tensor = project.linear_2(project.act(project.linear_1(rows)))
        return features


class PixtralImageFeatures(nn.Module):
    """A Pixtral tower and what follows it, on one picture in flat patches of merged-block order.

    Mirrors ``PixtralVisionModel.forward`` without a mask: all patches are one picture's.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower, project = self.model.model.vision_tower, self.model.model.multi_modal_projector
        size = tower.patch_size
        patches = tower.patch_conv(pixel_values.reshape(-1, 3, size, size)).flatten(1)
        states = [tower.ln_pre(patches.unsqueeze(0))]
        rotation = tower.patch_positional_embedding(states[0], patch_positions)
        for layer in tower.transformer.layers:
            states.append(layer(states[-1], None, position_embeddings=rotation))
        chosen = self.model.config.vision_feature_layer
        layers = [chosen] if isinstance(chosen, int) else chosen
        rows = torch.cat([states[layer][0] for layer in layers], dim=-1)
        merger = getattr(project, "patch_merger", None)
        if merger is not None:
            # As `unfold` joins a merged patch: channel by channel.
            blocks = project.norm(rows).reshape(-1, merger.spatial_merge_size**2, rows.shape[-1])
            rows = merger.merging_layer(blocks.transpose(1, 2).flatten(1))
        features: Tensor = project.linear_2(project.act(project.linear_1(rows)))
        return features
