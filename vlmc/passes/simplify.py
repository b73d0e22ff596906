"""simplify: the same neutral graph with fewer nodes; interface asserted unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmc.passes.fuse import fuse
from vlmc.passes.last_token import keep_last_token

if TYPE_CHECKING:
    import onnx_ir as ir

COUNTS = "nodes.json"


def simplify(graphs: dict[str, Path], out: Path) -> None:
    """Writes each graph simplified, and how many nodes each step left (``nodes.json``).

    onnxscript's optimizer folds what the exporter left; onnxsim then works on what remains; our
    own patterns (``fuse``) and the choice of the last token (``keep_last_token``) come last.

    Raises:
        RuntimeError: A step changed the inputs or outputs: a bug, never the user's mistake.
    """
    import onnx
    import onnx_ir as ir
    import onnxscript.optimizer
    import onnxsim

    counts: dict[str, dict[str, int]] = {}
    for name, path in graphs.items():
        model = ir.load(path)
        before = _interface(model)
        shapes = [value.shape and value.shape.copy() for value in model.graph.outputs]
        steps = {"exported": _count(model)}
        with _quick_slices():
            onnxscript.optimizer.optimize(model)
        steps["onnxscript"] = _count(model)
        proto = ir.to_proto(model)
        # Weights are inputs here, so the check by random inputs would need gigabytes: parity
        # is proven by the check pass, on the finished bundle.
        simplified, ok = onnxsim.simplify(proto, check_n=0)
        if not ok:
            raise RuntimeError(f"onnxsim could not validate its result for '{name}'")
        model = ir.from_proto(simplified)
        steps["onnxsim"] = _count(model)
        fuse(model.graph)
        steps["fused"] = _count(model)
        keep_last_token(model.graph)
        _keep_names(model.graph, shapes)
        if _interface(model) != before:
            changed = sorted(set(before) ^ set(_interface(model)))
            raise RuntimeError(f"simplification changed the interface of '{name}': {changed}")
        counts[name] = steps
        result = ir.to_proto(model)
        terms = _terms(model.graph)
        known = [value for value in result.graph.value_info if value.name in terms]
        del result.graph.value_info[:]
        result.graph.value_info.extend(known)
        onnx.save(result, out / f"{name}.onnx")
    (out / COUNTS).write_text(json.dumps(counts, indent=1), encoding="utf-8")


@contextmanager
def _quick_slices() -> Iterator[None]:
    """Has the optimizer's rule for two slices of one value asked only where there are two.

    By itself it walks the whole graph for every node, which takes most of the time on a deep
    model; elsewhere it would find nothing.
    """
    from onnxscript.rewriter.rules.common import slice_split_rule as rule

    ask = rule.try_rewrite

    def try_rewrite(model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        cut = node.inputs[0] if node.op_type == "Slice" else None
        if cut is None or sum(use.node.op_type == "Slice" for use in cut.uses()) < 2:
            return None
        return ask(model, graph, node, **options)

    rule.try_rewrite = try_rewrite
    try:
        yield
    finally:
        del rule.try_rewrite


def _keep_names(graph: ir.Graph, shapes: Sequence[ir.Shape | None]) -> None:
    """Gives the outputs' free dimensions their own names again.

    Inference names a dimension after another that it finds to be as long, as patches and image
    tokens are where each patch is a token.
    """
    import onnx_ir as ir

    for value, shape in zip(graph.outputs, shapes, strict=True):
        if value.shape is None or shape is None or len(value.shape) != len(shape):
            continue
        pairs = list(zip(value.shape, shape, strict=True))
        free = [[isinstance(one, ir.SymbolicDim) for one in pair] for pair in pairs]
        if all(new == old or all(both) for (new, old), both in zip(pairs, free, strict=True)):
            value.shape = shape


def _terms(graph: ir.Graph) -> set[str]:
    """Names of what is added up to a sum that is normalized.

    A backend can do both at once where their shapes, which are kept for that, are equal.
    """
    norms = [node for node in graph if node.op_type in ("LayerNormalization", "RMSNormalization")]
    sums = [node.inputs[0].producer() for node in norms if node.inputs[0] is not None]
    added = [node for node in sums if node is not None and node.op_type == "Add"]
    return {str(value.name) for node in added for value in node.inputs if value is not None}


def _count(model: ir.Model) -> int:
    return sum(1 for node in model.graph if node.op_type != "Constant")


def _interface(model: ir.Model) -> tuple[tuple[str | None, str, str], ...]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return tuple((v.name, str(v.dtype), str(v.shape)) for v in values)
