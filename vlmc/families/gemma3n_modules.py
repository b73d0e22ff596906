"""Gemma 3n's modules for export: streams of a decoder, and what it reads of tokens.

Imported lazily, because it needs torch at its top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.families.gemma4_modules import PerLayer, prepare_norms
from vlmc.families.mobilenet_v5_modules import attend_with

_NORM = "Gemma3nRMSNorm"


def prepare_tower(model: Any) -> nn.Module:
    """The model with a tower whose attention goes where that of other towers goes."""
    attend_with(model.model.vision_tower, model.config._attn_implementation)
    made: nn.Module = model
    return made


def token_inputs(model: Any, embeds: Tensor, ids: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """``inputs_embeds`` [B, S, H] and ``per_layer_inputs`` [B, S, layers, P].

    Mirrors ``Gemma3nModel.forward``: ids from an offset on are marks of pictures, and from a
    second one on of sounds, each looked up in a table of its own; so are such ids of an answer.
    """
    inner = model.model
    seen, heard = inner.embed_vision, inner.embed_audio
    sound = ids >= heard.vocab_offset
    for table, marks in ((seen, (ids >= seen.vocab_offset) & ~sound), (heard, sound)):
        if table.vocab_offset >= inner.vocab_size:
            continue  # no id is that large
        dummy = table.vocab_offset + table.vocab_size - 1
        rows = table(input_ids=torch.where(marks, ids, dummy))
        embeds = torch.where((marks & ~is_image)[..., None], rows, embeds)
    return {
        "inputs_embeds": embeds,
        "per_layer_inputs": inner.language_model.get_per_layer_inputs(ids),
    }


class Streams:
    """AltUp's hidden states as rows [B, S, N, H], read and written as if they were [N, B, S, H].

    So their mixture is a product of small matrices with no axis moved.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __getitem__(self, at: int | slice) -> Any:
        """A stream [B, S, H]; of those from the second on, a place where ``+=`` keeps a tensor."""
        return _Addend() if isinstance(at, slice) else self.rows[:, :, at]

    def __setitem__(self, at: slice, added: _Addend) -> None:
        """Adds to the streams ``at`` what their place was given."""
        kept, changed = self.rows[:, :, : at.start], self.rows[:, :, at.start :]
        self.rows = torch.cat([kept, changed + added.given[:, :, None]], dim=2)

    def last(self) -> Streams:
        """Those of the last token."""
        return Streams(self.rows[:, -1:])


class _Addend:
    given: Tensor

    def __iadd__(self, added: Tensor) -> _Addend:
        self.given = added
        return self


def _predict(altup: Any, hidden: Tensor | Streams) -> Streams:
    """Every stream, and what the others add to it; mirrors ``Gemma3nTextAltUp.predict``."""
    rows = hidden.rows if isinstance(hidden, Streams) else torch.stack(hidden.unbind(0), 2)
    routed = altup.compute_router_modalities(rows[:, :, altup.config.altup_active_idx])
    mixed = altup.prediction_coefs(routed).unflatten(-1, (rows.shape[2], rows.shape[2]))
    return Streams(mixed @ rows + rows)


def _correct(altup: Any, predicted: Streams, activated: Tensor) -> Streams:
    """Moves every stream as the active one was; mirrors ``Gemma3nTextAltUp.correct``."""
    moved = activated - predicted[altup.config.altup_active_idx]
    shares = altup.correction_coefs(altup.compute_router_modalities(activated)) + 1.0
    return Streams(predicted.rows + moved[:, :, None] * shares[..., None])


def prepare_decoder(model: Any) -> nn.Module:
    """The ``Gemma3nTextModel`` for export, changed for good; what it computes stays the same.

    Layers that read others' keys and values are given a step's last token alone: they add none of
    their own, and of all others no one reads what they make.
    """
    prepare_norms(model, _NORM)
    stack = model.model.language_model
    project = stack.project_per_layer_inputs

    def apart(*given: Any) -> PerLayer:
        return PerLayer(project(*given).unbind(2))

    stack.project_per_layer_inputs = apart
    # What ``token_inputs`` reads belongs to the language program, too.
    stack.tables = nn.ModuleList([model.model.embed_vision, model.model.embed_audio])
    for layer in stack.layers:
        layer.altup.predict = partial(_predict, layer.altup)
        layer.altup.correct = partial(_correct, layer.altup)
        if layer.mlp.activation_sparsity > 0:
            layer.mlp._gaussian_topk = partial(_largest, _deviations(layer.mlp.activation_sparsity))
        if layer.self_attn.is_kv_shared_layer:
            layer.forward = partial(_last_only, layer.forward)
    made: nn.Module = stack
    return made


def _deviations(share: float) -> float:
    """How many standard deviations over the mean that share of a normal distribution ends."""
    normal: Any = torch.distributions.Normal(0, 1)
    return float(normal.icdf(torch.tensor(share, dtype=torch.float32)))


def _largest(deviations: float, x: Tensor) -> Tensor:
    """What of ``x`` lies over so many deviations; mirrors ``Gemma3nTextMLP._gaussian_topk``."""
    mean = x.mean(-1, keepdim=True)
    spread = (x - mean).pow(2).mean(-1, keepdim=True).sqrt()
    return nn.functional.relu(x - (mean + spread * deviations))


def _last_only(
    forward: Callable[..., Any],
    hidden: Streams,
    rotation: tuple[Tensor, Tensor],
    per_layer: Tensor,
    *,
    attention_mask: Any,
    **others: Any,
) -> Any:
    """A layer's forward on a step's last token."""
    cos, sin = rotation
    if attention_mask.bias is not None:
        attention_mask = replace(attention_mask, bias=attention_mask.bias[:, :, -1:])
    return forward(
        hidden.last(),
        (cos[:, -1:], sin[:, -1:]),
        per_layer[:, -1:],
        attention_mask=attention_mask,
        **others,
    )
