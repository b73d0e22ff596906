"""``vlmc::Experts`` -> plain operators: a loop over the experts that some token chose."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmc.backends.onnxruntime.embedding import gather_rows
from vlmc.backends.onnxruntime.rewrite import Lowering

MICROSOFT = "com.microsoft"


def experts(low: Lowering, node: Any) -> Any:
    """The sum of each token's experts, float [T, H].

    Each turn takes one expert's matrices, multiplies the rows of the tokens that chose it, and
    adds them up: no matrix is read that no token needs, and none is held beside another.

    Args:
        low: The graph.
        node: Rows [T, H], chosen experts int64 [T, k] (-1: none, where it ``skips``) and their
            shares float [T, k]; weights ``gate_up`` [E, 2I, H] and ``down`` [E, H, I], both with
            the last axes the other way round where ``transposed``; ``gate`` is ``silu`` or
            ``gelu_tanh``.
    """
    import onnx_ir as ir

    rows, index, shares, gate_up, down = node.inputs
    hidden, inner = node.attributes["hidden"].value, node.attributes["inner"].value
    transposed = bool(node.attributes["transposed"].value)
    tanh = node.attributes["gate"].value == "gelu_tanh"

    turn, go_on, total = (
        _input(low, name, dtype, shape)
        for name, dtype, shape in (
            ("turn", ir.DataType.INT64, []),
            ("go_on", ir.DataType.BOOL, []),
            ("total", ir.DataType.FLOAT, [None, hidden]),
        )
    )
    hits = low.add("Unique", [index])
    if "skips" in node.attributes:
        chosen = low.add("GreaterOrEqual", [hits, low.constant(np.array(0, np.int64))])
        hits = low.add("Compress", [hits, chosen])
    trips = low.add("Squeeze", [low.add("Shape", [hits])])
    zeros = low.add("Mul", [rows, low.constant(np.float32(0))])
    body = low.inside()

    def matrix(weight: Any, shape: tuple[int, int]) -> Any:
        shape = shape[::-1] if transposed else shape
        ids = body.add("Reshape", [expert, low.constant(np.array([1, 1], np.int64))])
        picked = gather_rows(body, str(weight.name), ids)
        return body.add("Reshape", [picked, low.constant(np.array(shape, np.int64))])

    def product(x: Any, weight: Any) -> Any:
        attributes = {"transB": int(not transposed)}
        return body.add("FusedMatMul", [x, weight], attributes, domain=MICROSOFT)

    expert = body.add("Gather", [hits, turn])
    places = body.add("NonZero", [body.add("Equal", [index, expert])])  # [2, n]: token, choice
    pairs = body.add("Transpose", [places], {"perm": [1, 0]})
    one = low.constant(np.array([1], np.int64))
    tokens = body.add("Slice", [pairs, low.constant(np.array([0], np.int64)), one, one])
    both = product(body.add("GatherND", [rows, tokens]), matrix(gate_up, (2 * inner, hidden)))
    gate, up = body.add("Split", [both], {"axis": -1, "num_outputs": 2}, outputs=2)
    if tanh:
        gate = body.add("Gelu", [gate], {"approximate": "tanh"})
    else:
        gate = body.add("Mul", [gate, body.add("Sigmoid", [gate])])
    active = body.add("Mul", [gate, up])
    made = product(active, matrix(down, (hidden, inner)))
    share = body.add("Unsqueeze", [body.add("GatherND", [shares, pairs]), one])
    made = body.add("Mul", [made, share])
    # No token chooses an expert twice: every row is added to once a turn.
    after = body.add("ScatterND", [total, tokens, made], {"reduction": "add"})
    again = body.add("Identity", [go_on])
    graph = ir.Graph(
        [turn, go_on, total], [again, after], nodes=body.body, name=f"{node.name}_expert"
    )
    for value, dtype, shape in (
        (again, ir.DataType.BOOL, []),
        (after, ir.DataType.FLOAT, [None, hidden]),
    ):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
    return low.add("Loop", [trips, None, zeros], {"body": graph})


def _input(low: Lowering, name: str, dtype: Any, shape: list[Any]) -> Any:
    import onnx_ir as ir

    return ir.Value(name=low.name(name), type=ir.TensorType(dtype), shape=ir.Shape(shape))
