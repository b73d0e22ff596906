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
    found = {span for mask in masks for span in _spans(_blocks(prompt, mask))}
    everything = (0, len(prompt.token_ids))
    return (everything,) if everything in found else tuple(sorted(found))


def prefill_bias(mask: MaskSpec, prompt: Prompt, start: int, stop: int) -> NDArray[np.float32]:
    """What is added to the scores of the prompt's tokens ``[start, stop)``.

    Returns:
        ``[1, 1, stop - start, stop]``; ``[1, 1, 0, 0]`` where the mask is causal, in its window.
    """
    owners = _blocks(prompt, mask)
    here = any(first < stop and last > start for first, last in _spans(owners))
    if not here and (mask.chunk is None or stop <= mask.chunk):
        return np.zeros((1, 1, 0, 0), np.float32)
    owners = owners[:stop]
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


def _blocks(prompt: Prompt, mask: MaskSpec) -> NDArray[np.int64]:
    """For each token the number of those it sees, before and behind; -1: none of them."""
    owners = np.full(len(prompt.token_ids), -1)
    if mask.spans == "prompt":
        owners[:] = 0
    elif mask.spans == "images":
        image = prompt.feature_index >= 0
        starts = np.diff(image.astype(np.int8), prepend=0) == 1
        owners[image] = np.cumsum(starts)[image] - 1
    elif mask.spans == "together":
        before, after = mask.marks
        for span in prompt.spans:
            owners[span.start - before : span.start + span.length + after] = 0
    return owners


def _spans(owners: NDArray[np.int64]) -> list[Span]:
    """First token and end of each number's, of two tokens or more: one sees itself in any case."""
    numbers, firsts = np.unique(owners, return_index=True)
    lasts = len(owners) - np.unique(owners[::-1], return_index=True)[1]
    found = zip(numbers.tolist(), firsts.tolist(), lasts.tolist(), strict=True)
    return [(start, stop) for number, start, stop in found if number >= 0 and stop - start > 1]


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
