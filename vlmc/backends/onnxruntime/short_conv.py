"""``vlmc::ShortConv`` -> plain operators: a convolution for a prefill, one product for a token."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmc.backends.onnxruntime.rewrite import Lowering


def short_conv(low: Lowering, node: Any) -> Any:
    """Each channel's last inputs, weighed and added up, float [B, C, L - K + 1].

    onnxruntime's convolution sets itself up channel by channel, which costs a single token more
    than the product does.

    Args:
        low: The graph.
        node: Inputs [B, C, L], L at least K, a weight [C, K] and maybe a bias [C];
            ``kernel_size`` is K, ``channels`` C.
    """
    import onnx_ir as ir

    x, weight, *bias = node.inputs
    size, channels = (node.attributes[name].value for name in ("kernel_size", "channels"))
    length = low.add("Shape", [x], {"start": 2, "end": 3})
    single = low.add("Equal", [length, low.constant(np.array([size], np.int64))])
    last = low.constant(np.array([-1], np.int64))
    branches = []
    for name in ("then_branch", "else_branch"):
        inner = low.inside()
        if name == "then_branch":
            out = inner.add("ReduceSum", [inner.add("Mul", [x, weight]), last], {"keepdims": 1})
            if bias:
                out = inner.add("Add", [out, inner.add("Unsqueeze", [bias[0], last])])
        else:
            kernel = inner.add("Unsqueeze", [weight, low.constant(np.array([1], np.int64))])
            out = inner.add("Conv", [x, kernel, *bias], {"group": channels})
        out.type, out.shape = node.outputs[0].type, node.outputs[0].shape
        graph = ir.Graph([], [out], nodes=inner.body, name=low.name(name))
        branches.append(ir.AttrGraph(name, graph))
    return low.branch(single, branches, outputs=1)[0]
