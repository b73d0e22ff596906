"""Experts that a checkpoint holds one by one, stacked as a model of experts has them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from vlmc.passes.checkpoint import TensorRef

_ONE = re.compile(r"(?P<layer>.+\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+)\.weight")
# Stacked name -> names of one expert's matrices, laid one under the other: as most models name
# them, or as Mixtral does.
_STACKS = (
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("gate_up_proj", ("w1", "w3")),
    ("down_proj", ("down_proj",)),
    ("down_proj", ("w2",)),
)


def stack_experts(index: Mapping[str, TensorRef]) -> dict[str, TensorRef]:
    """Each layer's experts as ``gate_up_proj [E, 2I, H]`` and ``down_proj [E, H, I]``.

    Mirrors the ``MergeModulelist`` and ``Concatenate`` of ``transformers.conversion_mapping``; no
    weight is read. Experts that are not numbered from 0, or not all alike, stay as they are.
    """
    found: dict[str, dict[str, dict[int, TensorRef]]] = defaultdict(lambda: defaultdict(dict))
    for name, ref in index.items():
        if one := _ONE.fullmatch(name):
            found[one["layer"]][one["leaf"]][int(one["expert"])] = ref
    stacked: dict[str, TensorRef] = {}
    replaced: set[str] = set()
    for layer, leaves in found.items():
        for target, names in _STACKS:
            columns = [leaves[name] for name in names if name in leaves]
            if len(columns) < len(names) or not _alike(columns):
                continue
            rows = tuple(
                tuple(column[expert] for column in columns) for expert in range(len(columns[0]))
            )
            stacked[f"{layer}.{target}"] = _stack(f"{layer}.{target}", rows)
            replaced.update(ref.name for row in rows for ref in row)
    kept = {name: ref for name, ref in index.items() if name not in replaced}
    return dict(sorted((kept | stacked).items()))


def _alike(columns: list[dict[int, TensorRef]]) -> bool:
    count = len(columns[0])
    if any(sorted(column) != list(range(count)) for column in columns):
        return False
    kinds = {(ref.dtype, ref.shape) for column in columns for ref in column.values()}
    return len(kinds) == 1 and len(columns[0][0].shape) == 2


def _stack(name: str, rows: tuple[tuple[TensorRef, ...], ...]) -> TensorRef:
    first = rows[0][0]
    tall, wide = first.shape
    return TensorRef(
        name=name,
        path=first.path,
        dtype=first.dtype,
        shape=(len(rows), tall * len(rows[0]), wide),
        begin=first.begin,
        nbytes=sum(ref.nbytes for row in rows for ref in row),
        stacked=rows,
    )
