"""What a decoder's tokens attend to where that is more than those before them: by rule.

The rule is data, a ``MaskSpec`` of the manifest. Where it says the same as a causal mask in a
window, the program is given an empty bias and pays for none: so in nearly every step of decoding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.manifest import MaskSpec
from vlmc.runtime.types import Prompt

Span = tuple[int, int]
# Added to scores of tokens that are not seen; transformers adds the same number.
_UNSEEN = np.finfo(np.float32).min


def whole_spans(prompt: Prompt, masks: Sequence[MaskSpec]) -> tuple[Span, ...]:
    """Runs of tokens ``[start, stop)`` that see each other: no step may end inside one."""
    found = {span for mask in masks for span in _spans(prompt, mask)}
    everything = (0, len(prompt.token_ids))
    return (everything,) if everything in found else tuple(sorted(found))


def prefill_bias(mask: MaskSpec, prompt: Prompt, start: int, stop: int) -> NDArray[np.float32]:
    """What is added to the scores of the prompt's tokens ``[start, stop)``.

    Returns:
        ``[1, 1, stop - start, stop]``; ``[1, 1, 0, 0]`` where the mask is causal, in its window.
    """
    here = [span for span in _spans(prompt, mask) if span[0] < stop and span[1] > start]
    if not here and (mask.chunk is None or stop <= mask.chunk):
        return np.zeros((1, 1, 0, 0), np.float32)
    owners = np.full(stop, -1)
    for index, (first, last) in enumerate(here):
        owners[first:last] = index
    queries, keys = np.arange(start, stop)[:, None], np.arange(stop)[None]
    same = (owners[start:stop, None] == owners[None]) & (owners[start:stop, None] >= 0)
    return _bias(_seen(mask, queries, keys, same))[None, None]


def decode_bias(mask: MaskSpec, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """The same for one new token of each row, at index ``places [rows]`` of its sequence.

    Returns:
        ``[rows, 1, 1, longest]``; ``[rows, 1, 0, 0]`` where the mask is causal, in its window.
    """
    longest = int(places.max()) + 1
    if mask.chunk is None or longest <= mask.chunk:
        return np.zeros((len(places), 1, 0, 0), np.float32)
    seen = _seen(mask, places[:, None], np.arange(longest)[None], np.zeros((), bool))
    return _bias(seen)[:, None, None]


def _spans(prompt: Prompt, mask: MaskSpec) -> list[Span]:
    """A mask's spans of two tokens or more: one token sees itself in any case."""
    if mask.spans == "prompt":
        found = [(0, len(prompt.token_ids))]
    elif mask.spans == "images":
        borders = np.diff((prompt.feature_index >= 0).astype(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(borders == 1), np.flatnonzero(borders == -1)
        found = list(zip(starts.tolist(), stops.tolist(), strict=True))
    else:
        found = []
    return [(start, stop) for start, stop in found if stop - start > 1]


def _seen(
    mask: MaskSpec, queries: NDArray[np.int64], keys: NDArray[np.int64], same_span: NDArray[np.bool]
) -> NDArray[np.bool]:
    before = keys <= queries
    near = queries - keys < mask.window if mask.window is not None else np.True_
    if mask.chunk is not None:
        before = before & (queries // mask.chunk == keys // mask.chunk)
    if mask.window_in_spans:
        return (before | same_span) & near
    return (before & near) | same_span


def _bias(seen: NDArray[np.bool]) -> NDArray[np.float32]:
    return np.where(seen, np.float32(0), _UNSEEN)
