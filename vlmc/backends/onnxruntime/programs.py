"""The programs of a bundle, written for onnxruntime: one per tower, or both in one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.backends.onnxruntime.lower_chains import CHAIN
from vlmc.backends.spec import Product, StoredWeight
from vlmc.bundle.manifest import present_name
from vlmc.schema import Split

if TYPE_CHECKING:
    import onnx_ir as ir

FOLDER = "programs"
KERNELS_SUFFIX = ".kernels"


def lower(
    graphs: Mapping[str, Path],
    weights: Mapping[str, StoredWeight],
    split: Split,
    out: Path,
    slower: frozenset[Product] = frozenset(),
) -> None:
    """Writes ``programs/vision.onnx`` and ``language.onnx``, or ``model.onnx`` holding both.

    Beside each lies the same for our own kernels, ``NAME.kernels.onnx``. Both read one copy of the
    weights, so which of them runs is decided where the bundle is opened.

    Args:
        graphs: The neutral graphs ``vision`` and ``language``.
        weights: Where and in which format each weight is stored.
        split: ``dual`` or ``single``.
        out: The folder that gets ``programs/``.
        slower: Products that our own kernels leave to onnxruntime.
    """
    import onnx_ir as ir

    (out / FOLDER).mkdir()
    for kernels, suffix in ((False, ""), (True, KERNELS_SUFFIX)):
        models = {name: ir.load(path) for name, path in graphs.items()}
        for model in models.values():
            lower_graph(model, weights, kernels=kernels, slower=slower)
        if split == "single":
            models = {"model": _join(models["vision"], models["language"])}
        for name, model in models.items():
            model.graph.name = name
            for node in ir.traversal.RecursiveGraphIterator(model.graph):
                for value in node.outputs:
                    if not value.is_graph_output():
                        value.shape = None
                        # No type of what a chain gives is inferred.
                        value.type = value.type if node.op_type == CHAIN else None
            ir.save(model, out / FOLDER / f"{name}{suffix}.onnx")


def _join(vision: ir.Model, language: ir.Model) -> ir.Model:
    """One program: an ``If`` on ``run_vision`` gives the features the decoder reads.

    The tower is the body of one branch, so a step without a new image never pays for it.
    """
    import onnx_ir as ir
    import onnx_ir.convenience as convenience

    graph = language.graph
    run = ir.Value(name="run_vision", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.BOOL))
    made = list(vision.graph.outputs)
    given = [next(value for value in graph.inputs if value.name == one.name) for one in made]
    pixels = list(vision.graph.inputs)
    for value in (*vision.graph.initializers.values(), *_values(vision.graph)):
        value.name = f"vision.{value.name}"
    for node in vision.graph:
        node.name = f"vision.{node.name}"
    # Weights and inputs are the outer graph's: a branch has neither.
    initializers = list(vision.graph.initializers.values())
    vision.graph.initializers.clear()
    vision.graph.inputs.clear()
    for value in initializers:
        graph.initializers[str(value.name)] = value
    vision.graph.name = "vision"
    passed = [ir.Node("", "Identity", [one], name=f"given_{one.name}") for one in given]
    for node in passed:
        node.outputs[0].name = f"{node.name}_out"
    keep = ir.Graph([], [node.outputs[0] for node in passed], nodes=passed, name="given")
    branch = ir.Node(
        "",
        "If",
        [run],
        [ir.AttrGraph("then_branch", vision.graph), ir.AttrGraph("else_branch", keep)],
        name="features",
        num_outputs=len(made),
    )
    for chosen, one, node in zip(branch.outputs, given, passed, strict=True):
        chosen.name = present_name(str(one.name))
        chosen.type, chosen.shape = one.type, one.shape
        convenience.replace_all_uses_with([one], [chosen])
        node.replace_input_with(0, one)
    graph.insert_before(graph[0], branch)
    language_inputs = list(graph.inputs)
    graph.inputs.clear()
    graph.inputs.extend([*pixels, run, *language_inputs])
    outputs = list(graph.outputs)
    graph.outputs.clear()
    graph.outputs.extend([outputs[0], *branch.outputs, *outputs[1:]])
    return language


def _values(graph: ir.Graph) -> list[ir.Value]:
    # One without a name stands for an optional output that is not given.
    return [value for node in graph for value in node.outputs if value.name]
