"""Each shape of weight multiplied by both kernels on this machine: which is faster, and alike?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmc.backends.onnxruntime import native
from vlmc.backends.onnxruntime.lower import lower_graph
from vlmc.backends.onnxruntime.settings import session_options
from vlmc.backends.spec import Product, StoredWeight
from vlmc.errors import VlmcError
from vlmc.schema import Json

if TYPE_CHECKING:
    import onnx_ir as ir

# Weights of one shape that are multiplied in turns, so that they come from memory as in a model.
_COPIES = 6
_ROUNDS = 5
_DIGITS = 3
_KERNELS = ("onnxruntime", "vlmc")
# Rows that are multiplied to compare, and the largest error. One is rounded block by block by both
# kernels: 1e-6 is usual. Of more, ours rounds a weight of four bits once more, row by row: 0.013 is
# usual, and far more where a row has an outlier; a fault gives other numbers altogether.
_ALIKE = {1: 5e-2, 20: 0.5}
_FLOATS = ("fp32", "fp16")


def measure(
    graphs: Mapping[str, Path],
    weights: Mapping[str, StoredWeight],
    folder: Path,
    tokens: Sequence[int],
    threads: int,
) -> list[Json]:
    """Times every shape of product of some graphs, with their own weights.

    Args:
        graphs: The neutral graphs by name.
        weights: Where and in which format each weight is stored.
        folder: What the files of ``weights`` are relative to.
        tokens: Numbers of rows to multiply at once: one, a chunk, those in between.
        threads: As at run time.

    Returns:
        For each product: ``format``, ``inputs``, ``outputs``, ``weights`` (how many there are),
        ``seconds`` by kernel and number of rows (medians of interleaved rounds), and ``kernel``:
        ``vlmc``, or ``onnxruntime`` where that is faster in the geometric mean. Without kernels
        on this machine, an empty list.
    """
    if native.library() is None:
        return []
    found: list[Json] = []
    for product, names in sorted(_products(graphs, weights).items()):
        sessions = {
            kernel: _session(names[:_COPIES], weights, folder, threads, own=kernel == "vlmc")
            for kernel in _KERNELS
        }
        seconds: dict[str, dict[str, float]] = {kernel: {} for kernel in sessions}
        ratios = []
        for rows in tokens:
            x = np.random.default_rng(rows).standard_normal((rows, product.inputs))
            feeds = {"x": x.astype(np.float32)}
            times: dict[str, list[float]] = {kernel: [] for kernel in sessions}
            for _ in range(_ROUNDS):
                for kernel, session in sessions.items():
                    started = time.perf_counter()
                    session.run(None, feeds)
                    times[kernel].append((time.perf_counter() - started) / len(names[:_COPIES]))
            for kernel, values in times.items():
                seconds[kernel][str(rows)] = float(f"{median(values):.{_DIGITS}g}")
            ratios.append(median(times["vlmc"]) / median(times["onnxruntime"]))
        own = float(np.exp(np.mean(np.log(ratios)))) <= 1
        found.append(
            {
                "format": product.format,
                "inputs": product.inputs,
                "outputs": product.outputs,
                "weights": len(names),
                "seconds": seconds,
                "kernel": "vlmc" if own else "onnxruntime",
            }
        )
    return found


def hold_alike(
    graphs: Mapping[str, Path], weights: Mapping[str, StoredWeight], folder: Path, threads: int
) -> None:
    """Multiplies a quantized weight of each shape by both kernels, where there are both.

    Floats are left out, which both have as they are.

    A check runs the programs of one kind only where a bundle is large: whatever a weight's shape
    may do to the other's kernels shows here.

    Args:
        graphs: See ``measure``.
        weights: See ``measure``.
        folder: See ``measure``.
        threads: Of each program.

    Raises:
        VlmcError: Their results are not alike.
    """
    if native.library() is None:
        return
    for product, names in sorted(_products(graphs, weights).items()):
        name = names[0]
        if product.format in _FLOATS:
            continue
        theirs, ours = (
            _session([name], weights, folder, threads, own=kernel == "vlmc") for kernel in _KERNELS
        )
        for rows, most in _ALIKE.items():
            x = np.random.default_rng(rows).standard_normal((rows, product.inputs), np.float32)
            expected, found = (session.run(None, {"x": x})[0] for session in (theirs, ours))
            error = float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))
            if not error <= most:
                raise VlmcError(
                    f"vlmc's kernels and onnxruntime's differ by {error:.1e} on '{name}' "
                    f"({product.format}, {rows} rows), allowed {most:.1e}",
                    at="compile",
                    hint="VLMC_KERNELS=off builds without them; please report this",
                )


def slower(measured: Sequence[Json]) -> frozenset[Product]:
    """The products for which our own kernel is the slower one."""
    return frozenset(
        Product(str(row["format"]), int(str(row["inputs"])), int(str(row["outputs"])))
        for row in measured
        if row["kernel"] != "vlmc"
    )


def _products(
    graphs: Mapping[str, Path], weights: Mapping[str, StoredWeight]
) -> dict[Product, list[str]]:
    import onnx_ir as ir

    found: dict[Product, list[str]] = {}
    for path in graphs.values():
        for node in ir.load(path).graph:
            if node.domain == "vlmc" and node.op_type == "Linear":
                assert node.inputs[1] is not None
                name = str(node.inputs[1].name)
                names = found.setdefault(Product.of(weights[name]), [])
                if name not in names:
                    names.append(name)
    return found


def _session(
    names: Sequence[str],
    weights: Mapping[str, StoredWeight],
    folder: Path,
    threads: int,
    *,
    own: bool,
) -> Any:
    """A program of one product for each weight, all of the same input."""
    import onnx_ir as ir
    import onnxruntime as ort

    model = _model(names, weights)
    lower_graph(model, weights, kernels=own)
    settings = session_options(threads, folder)
    settings.add_session_config_entry(native.THREADS, str(threads))
    settings.register_custom_ops_library(str(native.library()))
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _model(names: Sequence[str], weights: Mapping[str, StoredWeight]) -> ir.Model:
    import onnx_ir as ir

    def value(name: str, *shape: int | str) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    columns = weights[names[0]].columns
    x = value("x", "rows", columns)
    inputs, nodes, outputs = [x], [], []
    for at, name in enumerate(names):
        weight = value(name, weights[name].rows, columns)
        node = ir.Node("vlmc", "Linear", [x, weight], name=f"product_{at}")
        node.outputs[0].name = f"y_{at}"
        node.outputs[0].type = x.type
        inputs.append(weight)
        nodes.append(node)
        outputs.append(node.outputs[0])
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, opset_imports={"": 23, "vlmc": 1}, name="products"
    )
    return ir.Model(graph, ir_version=11)
