"""The proof that a family's rule for masks is what transformers does, on layouts of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from inspect import signature
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import MaskSpec
from vlmc.errors import VlmcError
from vlmc.runtime.attention import decode_bias, prefill_bias, whole_spans
from vlmc.runtime.features import cut
from vlmc.runtime.types import ImageSpan, Prompt

# Prompts of text and image tokens, then of answer tokens.
_STEP = 4
_LAYOUTS = ("tttt aa", "iiiii aaaaaaa", "tiiiitttiiiit aaa", "iitttttttiiiiiiiiiti aa", "tit a")
# Windows and chunks are made this small, so that short layouts show all there is to see.
_SMALL = {"sliding_window": 3, "attention_chunk_size": 5}
_FIELDS = {"sliding_window": "window", "attention_chunk_size": "chunk"}


def prove_masks(
    model: Any, masks: Sequence[MaskSpec], create: Callable[..., Any] | None = None
) -> None:
    """Compares the rule, step by step as the runtime applies it, with the model's own masks.

    Args:
        model: The transformers model.
        masks: The family's rule, for each kind of layer.
        create: Makes the masks that the model has when it generates, where that is not
            its ``create_masks_for_generate``.

    Raises:
        VlmcError: They differ somewhere, or a window or chunk is not the configuration's.
    """
    config = deepcopy(model.config)
    text = config.get_text_config()
    text._attn_implementation = "eager"
    small = [_shrunk(mask, text) for mask in masks]
    for name, value in _SMALL.items():
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    for layout in _LAYOUTS:
        prompt, answer = layout.split()
        wanted = own_masks(model, config, prompt, answer, small, create)
        for mask in small:
            found = rule_mask(mask, prompt, answer, small, _STEP)
            if mask.layers not in wanted or not np.array_equal(found, wanted[mask.layers]):
                raise _different(model, mask.layers)
        kinds = set(getattr(text, "layer_types", None) or [None])
        if not kinds <= {mask.layers for mask in small}:
            raise _different(model, str(sorted(map(str, kinds))))


def _shrunk(mask: MaskSpec, text: Any) -> MaskSpec:
    """The rule with its numbers made small, once they are known to be the configuration's.

    Images have no marks around them in the layouts: a mark is an image's token as any other.
    """
    mask = mask.model_copy(update={"marks": (0, 0)})
    for name, field in _FIELDS.items():
        own = getattr(mask, field)
        if own is not None:
            if own != getattr(text, name, None):
                raise _different(text, mask.layers)
            mask = mask.model_copy(update={field: _SMALL[name]})
    return mask


def own_masks(
    model: Any,
    config: Any,
    prompt: str,
    answer: str,
    masks: Sequence[MaskSpec],
    create: Callable[..., Any] | None = None,
) -> dict[str | None, NDArray[np.bool]]:
    """The model's own masks bool [tokens, tokens] by kind of layer."""
    import torch
    from transformers.masking_utils import create_masks_for_generate

    if create is None:
        create = getattr(model, "create_masks_for_generate", create_masks_for_generate)
        named = signature(create).parameters.keys()
    else:
        named = {"mm_token_type_ids": None}.keys()
    if any(mask.spans == "prompt" for mask in masks):
        types = [0] * len(prompt) + [1] * len(answer)
    else:
        types = [int(letter == "i") for letter in prompt + answer]
    given = {}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in named:
            given[name] = torch.tensor([types])
    made = create(
        config=config,
        inputs_embeds=torch.zeros(1, len(types), 1),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(len(types))[None],
        **given,
    )
    by_kind = made if isinstance(made, dict) else {None: made}
    return {kind: (mask[0, 0] == 0).numpy() for kind, mask in by_kind.items()}


def rule_mask(
    mask: MaskSpec, prompt: str, answer: str, masks: Sequence[MaskSpec], step: int
) -> NDArray[np.bool]:
    """The rule's mask, put together from steps of prefill and decode."""
    index = np.cumsum([letter == "i" for letter in prompt]) - 1
    index = np.where([letter == "i" for letter in prompt], index, -1)
    borders = np.diff(np.array(index >= 0, np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(borders == 1), np.flatnonzero(borders == -1)
    pairs = enumerate(zip(starts.tolist(), stops.tolist(), strict=True))
    spans = tuple(ImageSpan(start, stop - start, at) for at, (start, stop) in pairs)
    made = Prompt(np.zeros(len(prompt), np.int64), index, spans)
    total = len(prompt) + len(answer)
    seen = np.zeros((total, total), bool)
    steps = [
        (chunk.start, prefill_bias(mask, made, chunk.start, chunk.stop)[0, 0])
        for chunk in cut(made, step, at_images=False, whole=whole_spans(made, masks))
    ]
    ends = [start for start, _ in steps[1:]] + [len(prompt)]
    steps += [(at, decode_bias(mask, np.array([at]))[0, 0]) for at in range(len(prompt), total)]
    ends += range(len(prompt) + 1, total + 1)
    for (start, bias), end in zip(steps, ends, strict=True):
        if bias.size:
            seen[start:end, :end] = bias == 0
            continue
        distance = np.arange(start, end)[:, None] - np.arange(end)[None]
        seen[start:end, :end] = (distance >= 0) & (distance < (mask.window or total))
    return seen


def _different(model: Any, layers: str | None) -> VlmcError:
    return VlmcError(
        f"{type(model).__name__} masks its layers {layers or ''} in a way that this family "
        "does not know",
        hint="this text backbone is not supported yet",
    )
