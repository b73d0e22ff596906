"""Cutting a prompt into prefill chunks, and the image features each chunk needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmc.runtime.types import Array, Prompt


@dataclass(frozen=True)
class Chunk:
    """One prefill step: ``tokens[start:stop]``.

    Attributes:
        start: First token.
        stop: One past the last.
        image: The image that is encoded inside this step (single split), or None.
    """

    start: int
    stop: int
    image: int | None = None


def cut(
    prompt: Prompt, size: int, *, at_images: bool, whole: Sequence[tuple[int, int]] = ()
) -> tuple[Chunk, ...]:
    """Chunks of at most ``size`` tokens, or of one span that must stay whole.

    Args:
        prompt: The whole prompt.
        size: The bundle's prefill-seq-len.
        at_images: Cut before each image's first token too, and name the image its chunk begins:
            a program that encodes while it prefills then has the features of one image to
            read, those it computes itself.
        whole: Runs of tokens ``[start, stop)`` that no cut may split.
    """
    firsts = _first_tokens(prompt) if at_images else {}
    chunks = []
    start = 0
    while start < len(prompt.token_ids):
        stop = min(start + size, len(prompt.token_ids))
        stop = min([stop, *(first for first in firsts if first > start)])
        for first, last in whole:
            if first < stop < last:
                stop = first if first > start else last
        alone = not any(start < first < stop for first in firsts)
        chunks.append(Chunk(start, stop, firsts.get(start) if alone else None))
        start = stop
    return tuple(chunks)


def _first_tokens(prompt: Prompt) -> dict[int, int]:
    """First placeholder token of each image -> the image."""
    tokens = np.flatnonzero(prompt.feature_index >= 0)
    owners = _owners(prompt, prompt.feature_index[tokens])
    images, firsts = np.unique(owners, return_index=True)
    return {int(tokens[first]): int(image) for image, first in zip(images, firsts, strict=True)}


def _owners(prompt: Prompt, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(first_rows(prompt), rows, side="right") - 1


def first_rows(prompt: Prompt) -> NDArray[np.int64]:
    """int64 [images + 1]: first row of each image in the concatenated features, then the end."""
    return np.cumsum([0, *(image.rows for image in prompt.images)])


def needed_images(prompt: Prompt, chunk: Chunk) -> list[int]:
    """The images whose features a chunk reads, in order."""
    rows = prompt.feature_index[chunk.start : chunk.stop]
    return [int(image) for image in np.unique(_owners(prompt, rows[rows >= 0]))]


def gather(
    prompt: Prompt, chunk: Chunk, features: dict[int, Array], blank: Array
) -> tuple[Array, NDArray[np.int64]]:
    """The feature rows a chunk reads and its index into them.

    Args:
        prompt: The whole prompt.
        chunk: The step.
        features: ``[tokens, W]`` of every image in ``needed_images``.
        blank: ``[1, W]``, returned when the chunk is text only.

    Returns:
        Rows ``[F, W]`` in the order of the prompt, and int64 ``[S]``, less than 0 for text.
    """
    index = prompt.feature_index[chunk.start : chunk.stop]
    wanted = np.unique(index[index >= 0])
    local = np.where(index >= 0, np.searchsorted(wanted, index), index)
    if not wanted.size:
        return blank, local
    firsts = first_rows(prompt)
    parts = []
    for image in needed_images(prompt, chunk):
        own = wanted[(wanted >= firsts[image]) & (wanted < firsts[image + 1])] - firsts[image]
        parts.append(features[image][own])
    return np.ascontiguousarray(np.concatenate(parts)), local
