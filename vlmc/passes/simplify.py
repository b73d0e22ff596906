"""simplify: the same neutral graph with fewer nodes; interface asserted unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
        with _quick_rules():
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
def _quick_rules() -> Iterator[None]:
    """Has each of the optimizer's rules look at what it could be about.

    By itself every rule is tried at every node, and the one for two slices of a value on all pairs
    of slices. That is most of the time on a deep model, and finds nothing more.
    """
    from onnxscript import rewriter

    matchers: list[Any] = [rule._matcher for rule in rewriter._DEFAULT_REWRITE_RULES]
    for matcher in matchers:
        matcher.match = partial(_match, matcher.match, matcher.pattern.output_nodes)
    try:
        yield
    finally:
        for matcher in matchers:
            del matcher.match


def _match(
    ask: Callable[..., Any],
    patterns: Sequence[Any],
    model: ir.Model,
    graph: ir.Graph,
    node: ir.Node,
    **options: Any,
) -> Any:
    if patterns[0].op_identifier() not in (None, node.op_identifier()):
        return None
    within: ir.Graph | _Readers = graph
    if len(patterns) > 1 and node.inputs[0] is not None:
        within = _Readers(node.inputs[0], graph)
    return ask(model, within, node, **options)


class _Readers:
    """The nodes that read a value, in place of all that its graph has."""

    def __init__(self, value: ir.Value, graph: ir.Graph) -> None:
        self._nodes = [use.node for use in value.uses()]
        self.graph = graph

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(self._nodes)


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
