"""Gemma 4's modules for export: a tower on one picture, and what its decoder reads of tokens.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class UnifiedImageFeatures(nn.Module):
    """Embedding and projection of one picture's patches, which there is no tower for.

    Mirrors ``Gemma4UnifiedModel.get_image_features`` without padding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed = model.model.embed_vision

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        """image_features [patches, hidden]."""
        places = patch_positions.flip(-1)[None]  # the model's are (x, y)
        made = self.embed(pixel_values[None], places, return_dict=True)
        features: Tensor = made.pooler_output[0]
        return features


def unified_masks(mm_token_type_ids: Tensor, **given: Any) -> dict[str, Any]:
    """Masks by kind of layer, as ``Gemma4UnifiedModel.forward`` makes them.

    Its ``create_masks_for_generate``, which a compiled ``generate`` uses, is Gemma 4's: there full
    layers do not see pictures both ways.
    """
    from transformers.masking_utils import create_masks_for_generate
    from transformers.models.gemma4_unified.modeling_gemma4_unified import (
        get_block_sequence_ids_for_mask,
    )

    blocks = get_block_sequence_ids_for_mask(mm_token_type_ids, mm_token_type_ids.device)
    made: dict[str, Any] = create_masks_for_generate(**given, block_sequence_ids=blocks)
    return made


class BudgetImageFeatures(nn.Module):
    """Tower, pooling and projection of one picture in flat patches of merged-block order.

    Mirrors ``Gemma4Model.get_image_features`` without padding: the patches that
    ``Gemma4VisionPooler`` averages are neighbours.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, patch_positions: Tensor) -> Tensor:
        """image_features [patches / merge^2, hidden]."""
        tower, embed = self.model.model.vision_tower, self.model.model.embed_vision
        places = patch_positions.flip(-1)[None]  # the model's are (x, y)
        nowhere = torch.zeros_like(places[..., 0], dtype=torch.bool)
        hidden = tower.patch_embedder(pixel_values[None], places, nowhere)
        hidden = tower.encoder(
            inputs_embeds=hidden, attention_mask=None, pixel_position_ids=places
        ).last_hidden_state[0]
        merge = tower.config.pooling_kernel_size**2
        rows = hidden.reshape(-1, merge, hidden.shape[-1]).mean(1) * tower.pooler.root_hidden_size
        if tower.config.standardize:
            rows = (rows - tower.std_bias) * tower.std_scale
        features: Tensor = embed(inputs_embeds=rows)
        return features


def token_inputs(model: Any, embeds: Tensor, ids: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """``inputs_embeds`` [B, S, H] and, where the model has them, ``per_layer_inputs``.

    Mirrors ``Gemma4Model.forward``: in place of every placeholder, one in an answer too, the
    tables are asked for the padding token.
    """
    config, decoder = model.config, model.model.language_model
    stray = torch.zeros_like(is_image)
    for kind in ("image", "video", "audio"):
        token = getattr(config, f"{kind}_token_id")
        if token is not None:
            stray = stray | (ids == token)
    stray = stray & ~is_image
    pad = config.text_config.pad_token_id or 0
    padding = decoder.embed_tokens(torch.full_like(ids[:1, :1], pad))
    given = {"inputs_embeds": torch.where(stray[..., None], padding, embeds)}
    if getattr(decoder, "hidden_size_per_layer_input", 0):
        safe = torch.where(stray | is_image, pad, ids)
        given["per_layer_inputs"] = decoder.get_per_layer_inputs(safe)
    return given


class PerLayer:
    """Per-layer inputs [B, S, layers, P], taken apart at once: layers that are alike stay alike."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = tuple(parts)

    def __getitem__(self, index: tuple[slice, slice, int, slice]) -> Tensor:
        """[B, S, P] of a layer, ``[:, :, layer, :]``."""
        return self.parts[index[2]]

    def last(self) -> PerLayer:
        """Those of the last token."""
        return PerLayer([part[:, -1:] for part in self.parts])


def prepare_decoder(stack: Any) -> nn.Module:
    """A ``Gemma4TextModel``, unified or not, for export, changed for good, not what it computes.

    Layers that read others' keys and values are given a step's last token alone.
    """
    project = getattr(stack, "project_per_layer_inputs", None)
    if project is None:  # a unified model, which has none
        stack._maybe_slice_kv_shared_inputs = last_alone
    else:

        def apart(*given: Any) -> PerLayer:
            return PerLayer(project(*given).unbind(2))

        stack.project_per_layer_inputs = apart
        stack._maybe_slice_kv_shared_inputs = last_only
    made: nn.Module = stack
    return made


def prepare_norms(model: nn.Module, kind: str = "Gemma4RMSNorm") -> None:
    """Writes norms of a class as most models do, which is how the passes know them."""
    for module in model.modules():
        if type(module).__name__ == kind:
            module._norm = partial(_normed, module.eps)  # type: ignore[assignment]


def _normed(eps: Any, hidden: Tensor) -> Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)


def last_only(
    hidden: Tensor,
    per_layer: PerLayer | None,
    rotation: dict[str, tuple[Tensor, Tensor]],
    masks: dict[str, Any],
    *_: Any,
    **__: Any,
) -> tuple[Any, ...]:
    """In the place of ``Gemma4TextModel._maybe_slice_kv_shared_inputs``: a step's last token.

    Layers that read others' keys and values add none of their own; of all others, no one reads
    what these layers make.
    """
    cut = {kind: (cos[:, -1:], sin[:, -1:]) for kind, (cos, sin) in rotation.items()}
    seen = {
        kind: mask if mask.bias is None else replace(mask, bias=mask.bias[:, :, -1:])
        for kind, mask in masks.items()
    }
    return hidden[:, -1:], None if per_layer is None else per_layer.last(), cut, seen


def last_alone(
    hidden: Tensor,
    rotation: dict[str, tuple[Tensor, Tensor]],
    masks: dict[str, Any],
    *_: Any,
    **__: Any,
) -> tuple[Any, ...]:
    """As ``last_only``, for a ``Gemma4UnifiedTextModel``: there are no per-layer inputs."""
    hidden, _none, rotation, masks = last_only(hidden, None, rotation, masks)
    return hidden, rotation, masks
