"""Tensors that a checkpoint packs together, named one by one; no data is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
