"""What torch sees while a model is exported: one attention, one linear layer.

Nodes of the domain ``vlmc`` are neutral: a backend lowers them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from vlmc.errors import VlmcError
from vlmc.passes.step import CausalMask, causal_mask, number_of, steps

ATTENTION = "vlmc"
DOMAIN_VERSION = 1


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | CausalMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered for ``vlmc``: emits one neutral ``vlmc::Attention``.

    Args:
        module: The attention module; ``layer_idx`` names its row of the cache.
        query: [batch, heads, step, head_dim], already rotated.
        key: [batch, kv_heads, step, head_dim], already rotated.
        value: As ``key``, or narrower.
        attention_mask: A proven causal mask, or the bias of one; None where all positions see each
            other; or what is added to the scores of a layer without a cache: float [batch, 1, 1 or
            step, step].
        scaling: Factor of the products; None: 1/sqrt(head_dim).
        softcap: Cap of the scores (Gemma 2), or None.
        kwargs: What else models pass; only what changes the result is read.

    Returns:
        [batch, step, heads, head_dim of ``value``], and no weights.

    Raises:
        VlmcError: The layer attends in a way that ``vlmc::Attention`` does not.
    """
    refused = kwargs.get("position_bias") is not None
    if isinstance(attention_mask, Tensor) and steps:
        # The bias of a decoder's step covers the cache: only the host can know it.
        attention_mask = steps[-1].mask_of(attention_mask)
        refused = refused or attention_mask is None
    elif isinstance(attention_mask, Tensor):
        refused = refused or not attention_mask.is_floating_point()
    if refused:
        raise VlmcError(
            f"{type(module).__name__} needs an attention bias, which is not supported yet"
        )
    if kwargs.get("s_aux") is not None:
        raise VlmcError(f"{type(module).__name__} has attention sinks: not supported yet")
    heads, width = query.shape[1], query.shape[3]
    kv_heads, kept = key.shape[1], value.shape[3]
    if kept < width:  # latent attention; the cache has rows of one width
        value = nn.functional.pad(value, (0, width - kept))
    packed = [t.transpose(1, 2).flatten(2) for t in (query, key, value)]
    causal = isinstance(attention_mask, CausalMask)
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "head_size": width,
        "scale": float(scaling if scaling is not None else width**-0.5),
        "softcap": float(softcap or 0.0),
        "causal": int(causal),
        "window": (attention_mask.window or 0) if isinstance(attention_mask, CausalMask) else 0,
    }
    if not causal:
        if isinstance(attention_mask, Tensor):
            packed.append(attention_mask.expand(-1, -1, query.shape[2], -1))
        out = torch.onnx.ops.symbolic(
            "vlmc::Attention",
            packed,
            attributes,
            dtype=query.dtype,
            shape=packed[0].shape,
            version=DOMAIN_VERSION,
        )
        return _heads_of(out, heads, kept), None
    bias = attention_mask.bias if isinstance(attention_mask, CausalMask) else None
    cache, layer = steps[-1], number_of(module.layer_idx)  # type: ignore[arg-type]
    if layer in cache.owners:
        # Its keys and values are the owner's, this step's among them; it adds none.
        keys, values = (cache.present[kind, cache.owners[layer]] for kind in ("key", "value"))
        read = [packed[0], None, None, keys, values, cache.lengths, cache.total]
        out = torch.onnx.ops.symbolic(
            "vlmc::Attention",
            [*read, *([] if bias is None else [bias])],
            attributes,
            dtype=query.dtype,
            shape=packed[0].shape,
            version=DOMAIN_VERSION,
        )
        return _heads_of(out, heads, kept), None
    past_key, past_value = (cache.past[kind, layer] for kind in ("key", "value"))
    described = [(past.shape[1], past.shape[3]) for past in (past_key, past_value)]
    # A head in the cache may be filled up with zeros, so it is only never narrower.
    if any(count != kv_heads or held < width for count, held in described):
        raise VlmcError(
            f"layer {layer} has {kv_heads} keys of {width} numbers and values of {kept}; its "
            f"configuration says {described[0][0]} of {described[0][1]}",
            at="config.json",
            hint="this text backbone is not supported yet",
        )
    if ("key", layer) in cache.present:
        raise VlmcError(
            f"{type(module).__name__} attends twice in one layer: not supported yet",
            at="config.json",
        )
    out, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "vlmc::Attention",
        [
            *packed,
            past_key,
            past_value,
            cache.lengths,
            cache.total,
            *([] if bias is None else [bias]),
        ],
        attributes,
        dtypes=[query.dtype, past_key.dtype, past_value.dtype],
        shapes=[packed[0].shape, past_key.shape, past_value.shape],
        version=DOMAIN_VERSION,
    )
    cache.present["key", layer], cache.present["value", layer] = present_key, present_value
    return _heads_of(out, heads, kept), None


def _heads_of(out: Tensor, heads: int, kept: int) -> Tensor:
    """[B, S, heads * width] as [B, S, heads, kept]."""
    apart = out.reshape(*out.shape[:-1], heads, out.shape[-1] // heads)
    return apart if apart.shape[-1] == kept else apart[..., :kept]


def register_attention() -> None:
    """Makes ``attn_implementation="vlmc"`` known to transformers; idempotent."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, causal_mask)


def neutral_linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A forward for ``module`` that emits ``vlmc::Linear(x, weight [N, K], bias?)``."""

    def forward(x: Tensor) -> Tensor:
        inputs = [x, module.weight] + ([] if module.bias is None else [module.bias])
        shape = (*x.shape[:-1], module.out_features)
        return torch.onnx.ops.symbolic(
            "vlmc::Linear", inputs, dtype=x.dtype, shape=shape, version=DOMAIN_VERSION
        )

    return forward
