"""Tensors that a checkpoint packs together, named one by one; no data is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmc.errors import VlmcError


def unpacked(ref: Any, parts: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A stored tensor's runs of rows as tensors of their own.

    Args:
        ref: The ``TensorRef`` of the whole.
        parts: Name and number of rows of each, from the first row on.

    Raises:
        VlmcError: It has another number of rows than all of them.
    """
    if sum(size for _, size in parts) != ref.shape[0]:
        sizes = " + ".join(str(size) for _, size in parts)
        raise VlmcError(
            f"tensor '{ref.name}' has {ref.shape[0]} rows, and the configuration makes it {sizes}",
            at=ref.path.name,
        )
    row, begin = ref.nbytes // ref.shape[0], ref.begin
    found: dict[str, Any] = {}
    for name, size in parts:
        shape, nbytes = (size, *ref.shape[1:]), size * row
        found[name] = replace(ref, name=name, shape=shape, begin=begin, nbytes=nbytes)
        begin += nbytes
    return found


def halved(ref: Any, heads: int) -> Any:
    """A tensor whose rows are each head's even ones, then its odd ones; no data is read.

    Mirrors transformers' ``PermuteForRope``: rotary embeddings of neighbours become those of
    halves.

    Args:
        ref: The ``TensorRef``.
        heads: How many share its rows.

    Raises:
        VlmcError: Its rows do not divide into pairs of each head.
    """
    rows = ref.shape[0]
    if rows % (2 * heads):
        message = f"tensor '{ref.name}' has {rows} rows, which {heads} heads cannot share"
        raise VlmcError(message, at=ref.path.name)
    order = np.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(0, 2, 1)
    single = [(str(row), 1) for row in range(rows)]
    apart = unpacked(ref, single)
    return replace(ref, parts=tuple(apart[str(row)] for row in order.reshape(-1).tolist()))
