"""Vision wrappers families share: one picture in, its rows of image features out.

Imported lazily by the families' ``vision`` functions, because it needs torch at its top.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_WINDOWED = "windowed"
# Scores of empty slots; far below any other, and a number in float16 too.
_UNSEEN = -1e4


class FixedImageFeatures(nn.Module):
    """``get_image_features`` on one picture of fixed size: pixel_values [1, 3, S, S]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tokens, hidden]."""
        features = self.model.get_image_features(pixel_values, return_dict=True).pooler_output
        return torch.cat(tuple(features), dim=0)


class TiledImageFeatures(nn.Module):
    """``get_image_features`` on the tiles of one picture: pixel_values [tiles, 3, S, S]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden], tile after tile."""
        features: Tensor = self.model.get_image_features(
            pixel_values, return_dict=True
        ).pooler_output
        return features.flatten(0, 1)


class FullTileFeatures(nn.Module):
    """Tower and connector of Idefics3 on the full tiles of one picture: [tiles, 3, S, S].

    transformers derives places and mask from a patch mask; where all is true the places are
    constants, and no mask is needed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.connector = model.connector
        side = self.tower.embeddings.num_patches_per_side
        self.register_buffer("places", _patch_places(side), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tiles * tokens, hidden]."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = patches + embeddings.position_embedding(self.places)
        hidden = self.tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        features: Tensor = self.connector(self.tower.post_layernorm(hidden))
        return features.flatten(0, 1)


def _patch_places(side: int) -> Tensor:
    """Position of every patch of a full tile, int64 [side * side].

    Mirrors ``Idefics3VisionEmbeddings.forward`` to the rounding: the buckets are nearly, not
    exactly, 0 to side - 1.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    step = 1.0 / torch.tensor([side])
    places = torch.clamp(torch.arange(side, dtype=torch.float32) * step, max=1.0 - 1e-6)
    buckets = torch.bucketize(places, boundaries, right=True)
    return (buckets[:, None] * side + buckets[None, :]).flatten()


class PackedImageFeatures(nn.Module):
    """A tower and projector on the tiles of one picture, its rows put in order by the host."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, packing: Tensor) -> Tensor:
        """image_features [tokens, hidden] of pixel_values [tiles, 3, S, S], packing [tokens]."""
        config, inner = self.model.config, self.model.model
        chosen = config.vision_feature_layer
        # As `select_hidden_states`: only the chosen states are kept.
        states = inner.vision_tower(pixel_values, output_hidden_states=chosen).hidden_states
        layers = [chosen] if isinstance(chosen, int) else chosen
        rows = torch.cat([states[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            rows = rows[:, 1:]
        rows = inner.multi_modal_projector(rows).flatten(0, 1)
        return torch.cat([rows, inner.image_newline[None]])[packing]


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


def windowed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    window_patches: Tensor,
    patch_slots: Tensor,
    inner: str,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside windows, by the attention function that is registered as ``inner``.

    Every window is a row of a batch, its empty slots masked: so windows need not be equal, and
    how many patches each has is data.

    Args:
        module: The attention module.
        query: [1, heads, P, head_dim], already rotated.
        key: As ``query``.
        value: As ``query``.
        attention_mask: None.
        window_patches: The patches of each window, int64 [windows, slots]; -1: none.
        patch_slots: The slot of each patch, int64 [P].
        inner: A name in ``AttentionInterface``.
        kwargs: For that function.

    Returns:
        [1, P, heads, head_dim], and no weights.
    """
    seen = torch.where(window_patches < 0, _UNSEEN, 0.0).to(query.dtype)
    rows = window_patches.clamp(min=0)
    query, key, value = (x[0].transpose(0, 1)[rows].transpose(1, 2) for x in (query, key, value))
    attend = AttentionInterface().get_interface(inner, sdpa_attention_forward)
    out, _ = attend(module, query, key, value, seen[:, None, None], **kwargs)
    return out.flatten(0, 1)[patch_slots].unsqueeze(0), None


class WindowedImageFeatures(nn.Module):
    """A native-resolution tower on one picture, most of whose layers attend inside windows.

    Mirrors ``Qwen2_5_VisionTransformerPretrainedModel.forward`` but for its sorting of patches by
    window: attention and merger give the same in any order that keeps merged patches together.
    The layers of ``visual`` are changed for good.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.inner = visual.config._attn_implementation
        AttentionInterface.register(_WINDOWED, windowed_attention)
        config = copy(visual.config)
        config._attn_implementation = _WINDOWED
        for layer, block in enumerate(visual.blocks):
            if layer not in visual.fullatt_block_indexes:
                block.attn.config = config

    def forward(
        self,
        pixel_values: Tensor,
        patch_positions: Tensor,
        window_patches: Tensor,
        patch_slots: Tensor,
    ) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        hidden = self.visual.patch_embed(pixel_values)
        windows = {
            "window_patches": window_patches,
            "patch_slots": patch_slots,
            "inner": self.inner,
        }
        rotation = self.visual.rotary_pos_emb(hidden, patch_positions)
        whole = OneSegment(pixel_values.shape[0])
        for layer, block in enumerate(self.visual.blocks):
            given = {} if layer in self.visual.fullatt_block_indexes else windows
            hidden = block(hidden, cu_seqlens=whole, position_embeddings=rotation, **given)
        features: Tensor = self.visual.merger(hidden)
        return features
