"""One step of a decoder while it is exported: its mask, proven causal, and its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache, KVSharingDict
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from vlmc.errors import VlmcError


class LayerNumber:
    """A layer's number while it stands for others (``repeat``): the cache alone may read it."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: int) -> None:
        self.value = value

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a layer's code depends on its number")

    __eq__ = __bool__ = __format__ = __str__ = _refuse


def number_of(layer_idx: int | LayerNumber) -> int:
    """A layer's number, for the cache."""
    return layer_idx.value if isinstance(layer_idx, LayerNumber) else layer_idx


@dataclass(frozen=True)
class CausalMask:
    """A mask proven causal, with an optional window; it travels in place of a mask tensor.

    ``bias`` is added to the scores instead, where it is not empty.
    """

    window: int | None
    bias: Tensor | None = None


# What layers are given in containers is told apart by what these hold (``repeat``).
pytree.register_pytree_node(
    KVSharingDict,
    lambda shared: (list(shared.values()), list(shared)),
    lambda values, kinds: KVSharingDict(zip(kinds, values, strict=True)),
)
pytree.register_pytree_node(
    CausalMask, lambda mask: ([mask.bias], mask.window), lambda of, window: CausalMask(window, *of)
)


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
    if mask_function is bidirectional_mask_function and attention_mask is None and not steps:
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
        """The layer's last inputs before this step, and this step's: [B, C, K + step].

        Raises:
            VlmcError: The family's facts name no state of this layer.
        """
        layer = number_of(layer_idx)
        past = self._state("state", layer)
        whole = torch.cat([past, conv_states], dim=-1)
        self.present["state", layer] = whole[..., -past.shape[-1] :]
        return whole

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        """Never: no step is taken back."""
        return False

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor:
        """What the layer's recurrent rule added up before this step.

        Raises:
            VlmcError: As ``update_conv_state``.
        """
        return self._state("matrix", number_of(layer_idx))

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, **kwargs: Any
    ) -> Tensor:
        """Takes what the rule has added up after this step."""
        self.present["matrix", number_of(layer_idx)] = recurrent_states
        return recurrent_states

    def _state(self, kind: str, layer: int) -> Tensor:
        past = self.past.get((kind, layer))
        if past is None:
            raise VlmcError(
                f"layer {layer} of the decoder keeps a state that this family does not carry",
                at="config.json: text_config",
                hint="this text backbone is not supported yet",
            )
        return past

    def held(self, layer: int) -> dict[tuple[str, Any], Tensor]:
        """What one layer may read of it, by name."""
        owner = self.owners.get(layer)
        past = {("past", kind): one for (kind, at), one in self.past.items() if at == layer}
        shared = {("present", kind): one for (kind, at), one in self.present.items() if at == owner}
        biases = {("bias", at): m.bias for at, m in enumerate(self.masks) if m.bias is not None}
        step = {("step", "lengths"): self.lengths, ("step", "total"): self.total}
        return {**step, **past, **shared, **biases}

    def within(self, layer: int, held: Mapping[tuple[str, Any], Tensor]) -> StepCache:
        """A cache of what one layer may read, of other tensors that ``held`` has by name."""
        past = {(kind, layer): one for (name, kind), one in held.items() if name == "past"}
        masks = [replace(m, bias=held.get(("bias", at))) for at, m in enumerate(self.masks)]
        cache = StepCache(past, held["step", "lengths"], held["step", "total"], masks, self.owners)
        owner = self.owners.get(layer, layer)  # of one without, nothing is held
        shared = {kind: one for (name, kind), one in held.items() if name == "present"}
        cache.leave(owner, shared)
        return cache

    def left(self, layer: int) -> dict[str, Tensor]:
        """What one layer left in it, by kind."""
        return {kind: one for (kind, at), one in self.present.items() if at == layer}

    def leave(self, layer: int, present: Mapping[str, Tensor]) -> None:
        """Takes what stands for that."""
        self.present.update({(kind, layer): one for kind, one in present.items()})

    def outputs(self) -> Iterator[Tensor]:
        """The present tensors, in the order of the past ones."""
        yield from (self.present[name] for name in self.past)


steps: list[StepCache] = []


@contextmanager
def step_cache(cache: StepCache) -> Iterator[StepCache]:
    """Makes ``cache`` the one that attention nodes of decoder layers read and write."""
    steps.append(cache)
    try:
        yield cache
    finally:
        steps.pop()
