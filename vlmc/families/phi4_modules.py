"""Phi-4's modules: the crops of one picture for export, and transformers' own for comparison.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.families.phi4_multimodal import layers_read

# Scores of what is not seen; far below any other, and a number in float16 too.
_UNSEEN = -1e4


class HdCropFeatures(nn.Module):
    """Tower, marks and projection on the crops of one picture, in the order the host gives.

    transformers hands the tower a mask of its padded patches. Where there are none, sdpa and flash
    attention get no mask, and take the modules at their word that they are causal.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed = model.model.embed_tokens_extend.image_embed
        layers = self.embed.img_processor.encoder.layers
        self.depth = layers_read(self.embed.layer_idx, len(layers))
        self.causal = any(layer.self_attn.is_causal for layer in layers)

    def forward(
        self, pixel_values: Tensor, patch_places: Tensor, packing: Tensor, one_way: Tensor
    ) -> Tensor:
        """image_features [tokens, hidden]."""
        embed, tower = self.embed, self.embed.img_processor
        hidden = tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + tower.embeddings.position_embedding(patch_places.clamp(min=0))
        unseen = torch.where(patch_places < 0, _UNSEEN, 0.0)[:, None, None]
        # Places in the order that counts; all alike where none does.
        order = torch.arange(patch_places.shape[1]) * (one_way * float(self.causal))
        unseen = unseen + torch.where(order > order[:, None], _UNSEEN, 0.0)
        for layer in tower.encoder.layers[: self.depth]:
            hidden = layer(hidden, unseen)
        side = int(patch_places.shape[1] ** 0.5)
        square = hidden.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if side % 2:
            square = embed.img_processor_padding(square)
        rows = embed.image_token_compression(square).permute(0, 2, 3, 1).flatten(0, 2)
        marks = (embed.sub_img_feature_extensor, embed.global_img_feature_extensor)
        rows = torch.cat([rows, *(mark.flatten()[None] for mark in marks)])[packing]
        rows = nn.functional.gelu(embed.img_projection_up(rows))
        features: Tensor = embed.img_projection_down(rows)
        return features


def image_features(
    embed: Any,
    *,
    image_pixel_values: Tensor,
    image_sizes: Tensor,
    image_attention_mask: Tensor,
    return_dict: bool = True,
) -> Any:
    """What ``Phi4MultimodalImageEmbedding`` puts in the place of a prompt's image tokens.

    Args:
        embed: The module.
        image_pixel_values: As the processor gives it, [images, 1 + crops, 3, S, S].
        image_sizes: As the processor gives it, [images, 2].
        image_attention_mask: As the processor gives it, [images, 1 + crops, patches, patches].
        return_dict: As ``get_image_features`` of other models, which this stands for.

    Returns:
        ``pooler_output``: the rows of all pictures, [1, tokens, hidden].
    """
    tokens = 0
    for size, mask in zip(image_sizes, image_attention_mask[:, :, ::2, ::2], strict=True):
        down, across = (size // embed.crop_size).tolist()
        seen, side = mask[1 : 1 + down * across], mask.shape[-1]
        tokens += int(seen.sum() + seen[::across, :, 0].sum()) + 1 + side * (side + 1)
    ids = torch.full((1, tokens), embed.config.vision_config.image_token_id)
    rows = embed(
        ids,
        torch.zeros(1, tokens, embed.img_projection_down.out_features),
        image_pixel_values=image_pixel_values,
        image_sizes=image_sizes,
        image_attention_mask=image_attention_mask,
    )
    return SimpleNamespace(pooler_output=rows)
