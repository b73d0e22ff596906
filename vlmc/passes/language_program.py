"""The language program as a module: features among embeddings, a decoder's step, its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmc.passes.step import CausalMask, StepCache, step_cache

if TYPE_CHECKING:
    from vlmc.families.spec import ModelFacts


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
            tokens = self.begin(embeds, input_ids, feature_index != -1)
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
