"""Chameleon's picture as codes, codes as tokens, and tokens that are never answered.

Imported lazily by ``vlmc/families/chameleon.py``, because it needs torch at its top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes


class CodeFeatures(nn.Module):
    """Embeddings of a picture's codes: pixel_values [1, 3, H, W]."""

    tokens: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        inner = model.model
        self.codes = inner.vqmodel
        self.embed = inner.embed_tokens
        self.register_buffer("tokens", _tokens(inner.vocabulary_mapping.img2bpe), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """image_features [tokens, hidden]; mirrors ``ChameleonModel.get_image_features``."""
        hidden = self.codes.quant_conv(self.codes.encoder(pixel_values))
        _, _, codes = self.codes.quantize(hidden)
        rows: Tensor = self.embed(self.tokens[codes][None])
        return rows[0]


def _tokens(token_of: dict[int, int]) -> Tensor:
    """The token of each code, int64; 0 where there is none, as transformers has it."""
    tokens = torch.zeros(max(token_of) + 1, dtype=torch.int64)
    for code, token in token_of.items():
        tokens[code] = token
    return tokens


def without_codes(model: Any, logits: Tensor) -> Tensor:
    """Logits [B, V] with the lowest number for tokens that stand for codes.

    Mirrors ``ChameleonForConditionalGeneration.forward``.
    """
    with _disable_current_modes():  # a constant of the graph, with data
        codes = torch.zeros(logits.shape[-1], dtype=torch.bool)
        codes[model.model.vocabulary_mapping.image_tokens] = True
    return logits.masked_fill(codes, torch.finfo(logits.dtype).min)
