"""``vlmc::GatedDelta`` -> plain operators: one update for a token, chunks of them for a prefill.

Mirrors ``torch_recurrent_gated_delta_rule`` and ``torch_chunk_gated_delta_rule`` of
``transformers.models.qwen3_next``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmc.backends.onnxruntime.rewrite import Lowering
from vlmc.backends.spec import Array

CHUNK = 32
"""Tokens whose updates are made one: more of them are fewer turns, and longer triangles."""
_EPSILON = 1e-6


@dataclass(frozen=True)
class _Sizes:
    """Key heads, the value heads of each, and how many numbers a key and a value have."""

    heads: int
    group: int
    key: int
    value: int


def gated_delta(low: Lowering, node: Any) -> tuple[Any, Any]:
    """What the tokens read, float [B, S, H * V], and the matrices after them [B, H, K, V].

    Args:
        low: The graph.
        node: Queries and keys [B, S, G * K], values [B, S, H * V], the logarithm of each token's
            decay and its share [B, S, H], matrices before them [B, H, K, V]; ``num_heads`` is H,
            ``key_heads`` G.
    """
    import onnx_ir as ir

    names = ("key_heads", "num_heads", "key_size", "value_size")
    key_heads, heads, key, value = (node.attributes[name].value for name in names)
    sizes = _Sizes(key_heads, heads // key_heads, key, value)
    length = low.add("Shape", [node.inputs[0]], {"start": 1, "end": 2})
    single = low.add("Equal", [length, _ints(low, 1)])
    branches = []
    for name, make in (("then_branch", _update), ("else_branch", _chunks)):
        inner = low.inside()
        outputs = make(inner, list(node.inputs), sizes)
        for output, like in zip(outputs, node.outputs, strict=True):
            output.type, output.shape = like.type, like.shape
        graph = ir.Graph([], outputs, nodes=inner.body, name=low.name(name))
        branches.append(ir.AttrGraph(name, graph))
    found: tuple[Any, Any] = low.branch(single, branches, outputs=2)
    return found


def _update(low: Lowering, inputs: list[Any], sizes: _Sizes) -> tuple[Any, Any]:
    """One token. Every matrix is read once before it is written: it lies where it lay."""
    query, key, value, decay, share, past = inputs
    n, group = sizes.heads, sizes.group

    def shaped(x: Any, *shape: int) -> Any:
        return low.add("Reshape", [x, _ints(low, 0, *shape)])

    key = _unit(low, shaped(key, n, 1, 1, sizes.key), sizes.key, 1.0)
    query = _unit(low, shaped(query, n, 1, 1, sizes.key), sizes.key, sizes.key**-0.5)
    matrix = shaped(past, n, group, sizes.key, sizes.value)
    decay = low.add("Exp", [shaped(decay, n, group, 1, 1)])
    both = low.add("Concat", [key, query], {"axis": 3})
    both = low.add("Mul", [low.add("MatMul", [both, matrix]), decay])
    known, read = low.add("Split", [both], {"axis": 3, "num_outputs": 2}, outputs=2)
    new = low.add("Sub", [shaped(value, n, group, 1, sizes.value), known])
    new = low.add("Mul", [new, shaped(share, n, group, 1, 1)])
    column = shaped(key, n, 1, sizes.key, 1)
    after = low.add("Add", [low.add("Mul", [matrix, decay]), low.add("Mul", [column, new])])
    match = low.add("MatMul", [query, column])
    out = low.add("Add", [read, low.add("Mul", [match, new])])
    out = low.add("Reshape", [out, _ints(low, 0, 1, n * group * sizes.value)])
    return out, low.add("Reshape", [after, _ints(low, 0, n * group, sizes.key, sizes.value)])


def _chunks(low: Lowering, inputs: list[Any], sizes: _Sizes) -> tuple[Any, Any]:
    """Many tokens, ``CHUNK`` at a time; those that fill up the last chunk change nothing."""
    query, key, value, decay, share, past = inputs
    n, group = sizes.heads, sizes.group
    length = low.add("Shape", [query], {"start": 1, "end": 2})
    missing = low.add("Mod", [low.add("Neg", [length]), _ints(low, CHUNK)])
    ends = low.add("Concat", [_ints(low, 0, 0, 0, 0), missing, _ints(low, 0)], {"axis": 0})

    def cut(x: Any, *shape: int) -> Any:
        """[B, S, H * D] -> [chunks, B, *shape, CHUNK, D]."""
        x = low.add("Pad", [x, ends])
        x = low.add("Reshape", [x, _ints(low, 0, -1, CHUNK, *shape)])
        last = len(shape) + 2
        order = [1, 0, *range(3, last), 2, last]
        return low.add("Transpose", [x], {"perm": order})

    key = _unit(low, cut(key, n, 1, sizes.key), sizes.key, 1.0)
    query = _unit(low, cut(query, n, 1, sizes.key), sizes.key, sizes.key**-0.5)
    value, decay, share = (
        cut(x, n, group, size) for x, size in ((value, sizes.value), (decay, 1), (share, 1))
    )
    summed = low.add("CumSum", [decay, low.constant(np.int64(-2))])  # [..., CHUNK, 1]
    last = low.add("Gather", [summed, _ints(low, CHUNK - 1)], {"axis": -2})
    turned = low.add("Transpose", [summed], {"perm": [0, 1, 2, 3, 5, 4]})
    # Above the diagonal, where a token would see those behind it, e to this is zero.
    between = low.add("Add", [low.add("Sub", [summed, turned]), low.constant(_above())])
    between = low.add("Exp", [between])
    grown = low.add("Exp", [summed])
    across = low.add("Transpose", [key], {"perm": [0, 1, 2, 3, 5, 4]})
    system = low.add("Mul", [low.add("MatMul", [key, across]), between])
    inverse = _inverse(low, low.add("Mul", [system, share]))
    seen = low.add("Mul", [low.add("MatMul", [query, across]), between])
    values = low.add("MatMul", [inverse, low.add("Mul", [value, share])])
    weighted = low.add("Mul", [key, low.add("Mul", [share, grown])])
    keys = low.add("MatMul", [inverse, weighted])
    reading = low.add("Concat", [keys, low.add("Mul", [query, grown])], {"axis": -2})
    rest = low.add("Exp", [low.add("Sub", [last, summed])])
    writing = low.add("Transpose", [low.add("Mul", [key, rest])], {"perm": [0, 1, 2, 3, 5, 4]})
    matrix = low.add("Reshape", [past, _ints(low, 0, n, group, sizes.key, sizes.value)])
    after, out = _scan(low, matrix, [values, reading, seen, writing, low.add("Exp", [last])])
    out = low.add("Transpose", [out], {"perm": [1, 0, 4, 2, 3, 5]})
    out = low.add("Reshape", [out, _ints(low, 0, -1, n * group * sizes.value)])
    out = low.add("Slice", [out, _ints(low, 0), length, _ints(low, 1)])
    return out, low.add("Reshape", [after, _ints(low, 0, n * group, sizes.key, sizes.value)])


def _scan(low: Lowering, matrix: Any, chunks: list[Any]) -> tuple[Any, Any]:
    """The matrices after all chunks, and what the tokens of each read.

    A chunk's own reads of the matrix all come before its write: with one chunk, it lies where it
    lay.
    """
    import onnx_ir as ir

    def floats(rank: int) -> Any:
        kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None] * rank)
        return ir.Value(name=low.name("chunk"), type=kind, shape=shape)

    before, values, reading, seen, writing, decay = (floats(5) for _ in range(6))
    body = low.inside()
    both = body.add("MatMul", [reading, before])
    known, read = body.add("Split", [both], {"axis": -2, "num_outputs": 2}, outputs=2)
    new = body.add("Sub", [values, known])
    out = body.add("Add", [read, body.add("MatMul", [seen, new])])
    kept = body.add("Mul", [before, decay])
    after = body.add("Add", [kept, body.add("MatMul", [writing, new])])
    for value in (after, out):
        value.type, value.shape = before.type, before.shape
    inputs = [before, values, reading, seen, writing, decay]
    graph = ir.Graph(inputs, [after, out], nodes=body.body, name=low.name("chunk"))
    found: tuple[Any, Any] = low.add(
        "Scan", [matrix, *chunks], {"body": graph, "num_scan_inputs": len(chunks)}, outputs=2
    )
    return found


def _inverse(low: Lowering, system: Any) -> Any:
    """The inverse of 1 + the part of ``system [..., CHUNK, CHUNK]`` below its diagonal.

    Blocks on the diagonal are joined in pairs: with D the inverse of two, and M what lies below
    the first and beside the second, D - D M D is that of both. As stable as forward substitution,
    which a series of powers is not.
    """
    found: Any = None
    size = 1
    while size < CHUNK:
        below = low.add("Mul", [system, low.constant(_below(size))])
        if found is None:
            found = low.add("Sub", [low.constant(np.eye(CHUNK, dtype=np.float32)), below])
        else:
            product = low.add("MatMul", [low.add("MatMul", [found, below]), found])
            found = low.add("Sub", [found, product])
        size *= 2
    return found


def _below(size: int) -> Array:
    """Ones where rows of every second block of ``size`` meet columns of the one before it."""
    block = np.arange(CHUNK) // size
    chosen: Array = (block[:, None] == block + 1) & (block % 2 == 0)
    return chosen.astype(np.float32)


def _above() -> Array:
    """Minus infinity above the diagonal, else zero."""
    return np.triu(np.full((CHUNK, CHUNK), -np.inf, np.float32), 1)


def _unit(low: Lowering, x: Any, size: int, length: float) -> Any:
    """``x [..., size]`` made as long as ``length``, by its root mean square."""
    factor = np.full(size, length * size**-0.5, np.float32)
    attributes = {"axis": -1, "epsilon": _EPSILON / size}
    return low.add("RMSNormalization", [x, low.constant(factor)], attributes)


def _ints(low: Lowering, *numbers: int) -> Any:
    return low.constant(np.array(numbers, np.int64))
