"""What torch sees while a model is exported: one attention, one cache, one linear layer.

The only file that imports torch at its top; it is imported lazily by ``transform`` and
``export``. Nodes of the domain ``vlmc`` are neutral: a backend lowers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from vlmc.errors import VlmcError

if TYPE_CHECKING:
    from vlmc.families.spec import ModelFacts

ATTENTION = "vlmc"
DOMAIN_VERSION = 1


@dataclass(frozen=True)
class CausalMask:
    """A mask proven causal, with an optional window; it travels in place of a mask tensor.

    ``bias`` is added to the scores instead, where it is not empty.
    """

    window: int | None
    bias: Tensor | None = None


def _agrees_with_window(mask_function: Callable[..., Any], window: int) -> bool:
    """Whether a mask function equals causal-with-window on the pairs where they could differ."""
    index = torch.tensor(0)
    for query in (0, 1, window - 1, window, window + 1, 3 * window + 2):
        for distance in (-2, -1, 0, 1, window - 1, window, window + 1, 2 * window):
            key = query - distance
            if key < 0:
                continue
            seen = bool(mask_function(index, index, torch.tensor(query), torch.tensor(key)))
            if seen != (0 <= distance < window):
                return False
    return True


def causal_mask(
    *, mask_function: Callable[..., Any], config: Any, attention_mask: Any = None, **_: Any
) -> CausalMask | None:
    """The mask function registered for ``vlmc``: proves the mask causal, or refuses it.

    None where all see each other, outside of a decoder's step.

    Raises:
        VlmcError: The model asks for a mask that the neutral attention node cannot carry.
    """
    if mask_function is causal_mask_function:
        return CausalMask(window=None)
    if mask_function is bidirectional_mask_function and attention_mask is None and not _step:
        return None
    window = getattr(config, "sliding_window", None)
    with torch.utils._python_dispatch._disable_current_modes():
        windowed = isinstance(window, int) and _agrees_with_window(mask_function, window)
    if not windowed:
        raise VlmcError(
            f"the decoder '{config.model_type}' masks attention in a way that is neither causal "
            "nor a sliding window",
            hint="this text backbone is not supported yet",
        )
    return CausalMask(window=window)


class StepCache(Cache):  # type: ignore[misc]
    """The cache during one exported step: past tensors in, present tensors out.

    ``masks`` are those of the program's inputs; where a model takes tensors only, a layer is
    handed such a mask's bias, and the mask is found by it. ``owners`` are the layers whose keys
    and values others read.

    ``update`` hands the step's own keys and values through; the attention node appends them to
    the past in place, so the past never flows through the model's code.
    """

    def __init__(
        self,
        past: Mapping[tuple[str, int], Tensor],
        lengths: Tensor,
        total: Tensor,
        masks: Sequence[CausalMask] = (),
        owners: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(layers=[])
        self.past = past
        self.masks = masks
        self.owners = owners or {}
        self.lengths = lengths
        self.total = total
        self.present: dict[tuple[str, int], Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new keys and values, unchanged (see the class)."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions come from the host, never from the cache."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """0, as ``get_seq_length``."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Sizes of a step without past; only the mask's kind is read (``causal_mask``)."""
        return query_length, 0

    def mask_of(self, bias: Tensor) -> CausalMask | None:
        """The mask that a bias belongs to; None for a tensor the model made itself."""
        return next((mask for mask in self.masks if mask.bias is bias), None)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: a step of one token is computed as any other, by ``update_conv_state``."""

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, **kwargs: Any) -> Tensor:
        """The layer's last inputs before this step, and this step's: [B, C, K + step]."""
        past = self.past["state", layer_idx]
        whole = torch.cat([past, conv_states], dim=-1)
        self.present["state", layer_idx] = whole[..., -past.shape[-1] :]
        return whole

    def outputs(self) -> Iterator[Tensor]:
        """The present tensors, in the order of the past ones."""
        yield from (self.present[name] for name in self.past)


_step: list[StepCache] = []


@contextmanager
def step_cache(cache: StepCache) -> Iterator[StepCache]:
    """Makes ``cache`` the one that attention nodes of decoder layers read and write."""
    _step.append(cache)
    try:
        yield cache
    finally:
        _step.pop()


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
        value: As ``key``.
        attention_mask: A proven causal mask, or the bias of one; None where all positions see each
            other; or what is added to the scores of a layer without a cache: float [batch, 1, 1 or
            step, step].
        scaling: Factor of the products; None: 1/sqrt(head_dim).
        softcap: Cap of the scores (Gemma 2), or None.
        kwargs: What else models pass; only what changes the result is read.

    Returns:
        [batch, step, heads, head_dim], and no weights.
    """
    refused = kwargs.get("position_bias") is not None
    if isinstance(attention_mask, Tensor) and _step:
        # The bias of a decoder's step covers the cache: only the host can know it.
        attention_mask = _step[-1].mask_of(attention_mask)
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
    kv_heads = key.shape[1]
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
        return out.reshape(*out.shape[:-1], heads, width), None
    bias = attention_mask.bias if isinstance(attention_mask, CausalMask) else None
    cache, layer = _step[-1], int(module.layer_idx)  # type: ignore[arg-type]
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
        return out.reshape(*out.shape[:-1], heads, width), None
    past_key, past_value = (cache.past[kind, layer] for kind in ("key", "value"))
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
    return out.reshape(*out.shape[:-1], heads, width), None


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


@contextmanager
def _adding(decoder: Any, rows: Mapping[int, Tensor]) -> Iterator[None]:
    """Adds to the hidden states, once so many layers have run, rows [B, S, H] (deep-stack)."""

    def adder(added: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _, inputs: (inputs[0] + added, *inputs[1:])

    after = [*decoder.layers, decoder.norm] if rows else []
    handles = [after[at].register_forward_pre_hook(adder(added)) for at, added in rows.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LanguageProgram(nn.Module):
    """The language program of design.md section 4 around a decoder and its head.

    Args:
        decoder: The stack of layers, its ``layers`` and then its ``norm``.
        embed: The table of token embeddings.
        head: The output projection.
        facts: Its ``deepstack`` and ``masks`` count; these are proven right.
        finish: What becomes of the logits then.
        begin: What the decoder is given, of embeddings, ids and where images are; None: the
            embeddings.
    """

    def __init__(
        self,
        decoder: nn.Module,
        embed: nn.Module,
        head: nn.Module,
        facts: ModelFacts,
        finish: Callable[[Tensor], Tensor] | None = None,
        begin: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.embed = embed
        self.head = head
        self.finish = finish
        self.begin = begin
        self.masks = facts.masks
        self.deepstack = facts.deepstack
        self.memory = facts.memory()
        self.owners = facts.owners

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor,
        feature_index: Tensor,
        position_ids: Tensor,
        sequence_lengths: Tensor,
        total_length: Tensor,
        extras: list[Tensor],
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits [B, V] of each row's last token, then the present keys, values and states.

        ``extras`` holds ``deepstack_features`` [F, len(deepstack), H], where there are any, and
        the masks' biases.
        """
        is_image = feature_index >= 0
        # A placeholder's id may lie outside the embedding table; its row is never used.
        text = self.embed(torch.where(is_image, 0, input_ids))
        rows = image_features[feature_index.clamp(min=0)]
        embeds = torch.where(is_image.unsqueeze(-1), rows, text)
        tokens = {"inputs_embeds": embeds}
        if self.begin is not None:
            tokens = self.begin(embeds, input_ids, is_image)
        given = iter(extras)
        added: list[Tensor] = []
        if self.deepstack:
            deep = next(given)[feature_index.clamp(min=0)]
            deep = torch.where(is_image[..., None, None], deep, 0.0)
            added = [deep[:, :, at] for at in range(len(self.deepstack))]
        masks = [CausalMask(m.window, next(given) if m.input else None) for m in self.masks]
        memory = dict(zip(self.memory, past, strict=True))
        with (
            step_cache(
                StepCache(memory, sequence_lengths, total_length, masks, self.owners)
            ) as cache,
            _adding(self.decoder, dict(zip(self.deepstack, added, strict=True))),
        ):
            hidden = self.decoder(
                **tokens,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                **self._mask(masks),
            ).last_hidden_state
        logits = self.head(hidden[:, -1])
        if self.finish is not None:
            logits = self.finish(logits)
        return (logits, *cache.outputs())

    def _mask(self, masks: Sequence[CausalMask]) -> dict[str, Any]:
        """The decoder's ``attention_mask``: none, one for all layers, or one for each kind."""
        if not masks:
            return {}
        if self.masks[0].layers is not None:
            return {"attention_mask": {m.layers: c for m, c in zip(self.masks, masks, strict=True)}}
        # A decoder that knows one kind takes a tensor for what it is.
        return {"attention_mask": masks[0].bias}
