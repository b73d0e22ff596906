"""A program's nodes cut into pieces whose weights are few enough to be held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Piece:
    """Consecutive nodes, and the values that cross their border."""

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    weights: tuple[str, ...]


def cut(graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto], limit: int) -> list[Piece]:
    """The nodes in their order, cut so that none but a single node holds over ``limit`` bytes.

    What turns weights stays with the node that reads what it makes, in every piece that has one:
    blocks of codes that are made elsewhere are no constants, and would not be packed.
    """
    outputs = {value.name for value in graph.output}
    fixed: dict[str, onnx.NodeProto] = {}
    groups: list[dict[tuple[str, ...], onnx.NodeProto]] = [{}]  # by what a node makes
    held: set[str] = set()
    for node in graph.node:
        known = all(name in weights or name in fixed for name in names_read(node))
        if known and outputs.isdisjoint(node.output):
            fixed |= dict.fromkeys(node.output, node)
            continue
        unit = {tuple(each.output): each for each in (*_makers(node, fixed), node)}
        read = {name for each in unit.values() for name in names_read(each) if name in weights}
        size = sum(stored_bytes(weights[name]) for name in held | read)
        if groups[-1] and read - held and size > limit:
            groups.append({})
            held = set()
        groups[-1] |= unit
        held |= read
    made = [[name for names in group for name in names if name] for group in groups]
    reads = [
        {n for node in group.values() for n in names_read(node)} - set(own)
        for group, own in zip(groups, made, strict=True)
    ]
    pieces = []
    for at, group in enumerate(groups):
        wanted = outputs.union(*reads[at + 1 :])
        pieces.append(
            Piece(
                nodes=tuple(group.values()),
                reads=tuple(sorted(reads[at] - weights.keys())),
                gives=tuple(name for name in made[at] if name in wanted),
                weights=tuple(sorted(reads[at] & weights.keys())),
            )
        )
    return pieces


def _makers(node: onnx.NodeProto, fixed: Mapping[str, onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """The nodes that make what a node reads of weights alone, each behind those it reads."""
    for name in names_read(node):
        if name in fixed:
            yield from _makers(fixed[name], fixed)
            yield fixed[name]


def names_read(node: onnx.NodeProto) -> Iterable[str]:
    """Inputs of a node, and what its branches read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            made = {name for inner in attribute.g.node for name in inner.output}
            made |= {value.name for value in attribute.g.input}
            for inner in attribute.g.node:
                yield from (name for name in names_read(inner) if name not in made)


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Of a weight, wherever it lies."""
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data)
