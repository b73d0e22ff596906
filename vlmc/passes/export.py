"""export: torch modules on fake tensors -> neutral ONNX graphs that know weights by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmc.bundle.manifest import TensorSpec
from vlmc.errors import VlmcError
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.parameters import canonical_names, parameter_sources
from vlmc.passes.quiet import quiet
from vlmc.passes.translate import translate
from vlmc.passes.unfold import unfold
from vlmc.passes.upstream import in_a_line
from vlmc.schema import Json

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from vlmc.passes.transform import TransformedModel

PARAMETERS = "parameters.json"
# They tell of every torchvision operator that is absent, and of every node that is ours.
_LOGGERS = tuple(f"torch.onnx._internal.exporter.{name}" for name in ("_registration", "_core"))
# Sizes of the free dimensions while tracing: all different, none 0 or 1 (those specialize).
_TRACE = {"batch": 2, "step": 5, "features": 7, "ctx": 64}


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export, ``vision`` or ``language``: its typed inputs and outputs, in order.

    ``sizes`` are for tracing the free dimensions; ``multiples`` says which of them are always a
    multiple of a number, to which a size is rounded up.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    multiples: Mapping[str, int] = field(default_factory=dict)

    def described(self) -> Json:
        """As JSON, for a cache key."""
        return {
            "name": self.name,
            "inputs": [spec.model_dump(mode="json") for spec in self.inputs],
            "outputs": [spec.model_dump(mode="json") for spec in self.outputs],
            "sizes": dict(self.sizes),
            "multiples": dict(self.multiples),
        }


def export(
    model: TransformedModel,
    index: Mapping[str, TensorRef],
    specs: Sequence[GraphSpec],
    out: Path,
) -> None:
    """Writes ``NAME.onnx`` for each spec, and which checkpoint tensor fills each weight.

    Weights are graph inputs named by their canonical parameter name, after the real inputs.

    Args:
        model: The modules.
        index: The checkpoint's tensors.
        specs: The graphs.
        out: The folder to write to.

    Raises:
        VlmcError: The checkpoint does not fit the model.
    """
    names = canonical_names(model.module)
    programs = {spec.name: _export_graph(model, spec, out) for spec in specs}
    used = sorted({name for weights in programs.values() for name in weights})
    sources = parameter_sources(model.module, index, model.matched, used)
    embeddings = names[id(model.language.embed.weight)]  # type: ignore[union-attr]
    head = names[id(model.language.head.weight)]  # type: ignore[union-attr]
    text = json.dumps(
        {"programs": programs, "sources": sources, "embedding": embeddings, "head": head},
        indent=1,
        sort_keys=True,
    )
    (out / PARAMETERS).write_text(text, encoding="utf-8")


def _export_graph(model: TransformedModel, spec: GraphSpec, out: Path) -> list[str]:
    """Writes one graph; returns the canonical names of its weights."""
    import onnx_ir as ir

    names = canonical_names(model.module)
    module = {"vision": model.vision, "language": model.language}[spec.name]
    graph_model = _export_one(spec, module)
    renamed = {
        path: names[id(parameter)]
        for path, parameter in module.named_parameters(remove_duplicate=False)
    }
    weights = _lift_weights(graph_model, renamed)
    _name_interface(graph_model, spec)
    ir.save(graph_model, out / f"{spec.name}.onnx")
    return weights


def trace_sizes(spec: GraphSpec) -> dict[str, int]:
    """Sizes of the free dimensions to trace with.

    What is always a multiple of a number is twice that number at least: a single one specializes.
    """
    sizes = {**_TRACE, **spec.sizes}
    for name, times in spec.multiples.items():
        sizes[name] = times * max(2, -(-sizes[name] // times))
    return sizes


def _export_one(spec: GraphSpec, module: nn.Module) -> ir.Model:
    import torch

    fake = next(p.fake_mode for p in module.parameters())  # type: ignore[attr-defined]
    sizes = trace_sizes(spec)
    free = {d for t in spec.inputs for d in t.shape if isinstance(d, str)}
    dims: dict[str, Any] = {}
    for name in sorted(free):
        times = spec.multiples.get(name, 1)
        dims[name] = (
            times * torch.export.Dim(f"{name}_{times}") if times > 1 else (torch.export.Dim(name))
        )
    arguments: list[Any] = []
    shapes: list[Any] = []
    with fake:
        for tensor in spec.inputs:
            shape = [sizes[d] if isinstance(d, str) else d for d in tensor.shape]
            arguments.append(torch.zeros(shape, dtype=getattr(torch, tensor.dtype)))
            shapes.append({i: dims[d] for i, d in enumerate(tensor.shape) if isinstance(d, str)})
        # The extras are one list to the module, and the cache's tensors another.
        names = [tensor.name for tensor in spec.inputs]
        if "total_length" in names:
            extras = names.index("total_length") + 1
            past = next(i for i, name in enumerate(names) if name.startswith("past_"))
            arguments[extras:] = [arguments[extras:past], arguments[past:]]
            shapes[extras:] = [shapes[extras:past], shapes[past:]]
        with quiet(*_LOGGERS), _refused(spec.name):
            try:
                return graph_of(module, arguments, shapes, repeat=True)
            except Exception:
                # What a layer cannot do for others, each may do for itself.
                return graph_of(module, arguments, shapes, repeat=False)


def graph_of(
    module: nn.Module, arguments: Sequence[Any], shapes: Sequence[Any], *, repeat: bool
) -> ir.Model:
    """The module traced and translated.

    Args:
        module: On fake tensors.
        arguments: To trace it with.
        shapes: Their free dimensions, as torch.export takes them.
        repeat: Whether one layer is traced for all that are alike (``vlmc/passes/repeat.py``).

    Raises:
        Exception: The model's code raises, or cannot be written; with ``repeat``, layers depend on
            what a call cannot give them.
    """
    import torch
    from torch._dynamo import config

    from vlmc.passes.closed import prove_closed
    from vlmc.passes.repeat import repeating

    # Where gradients are off already, code that turns them off leaves no node. To look up
    # what was computed for tensors alike takes longer than to compute it.
    with (
        torch.no_grad(),
        config.patch(fake_tensor_cache_enabled=False),
        repeating(module, shapes) if repeat else nullcontext(),
    ):
        traced = torch.export.export(
            module, tuple(arguments), dynamic_shapes=tuple(shapes), strict=False
        )
    if repeat:
        prove_closed(traced)
    model = translate(traced)
    if repeat:
        unfold(model)
    return model


@contextmanager
def _refused(graph: str) -> Iterator[None]:
    """The model's code is not ours: whatever it cannot do while it is traced, the user is told."""
    try:
        yield
    except VlmcError:
        raise
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise VlmcError(
            f"transformers' code of the {graph} part cannot be exported: {in_a_line(first)}",
            at="config.json",
            hint="this model, or this text backbone, is not supported yet",
        ) from error


def _lift_weights(model: ir.Model, renamed: Mapping[str, str]) -> list[str]:
    """Turns initializers without data into graph inputs; returns their canonical names."""
    from torch._subclasses.fake_tensor import FakeTensor

    graph = model.graph
    lifted: dict[str, Any] = {}
    for name, value in list(graph.initializers.items()):
        if not isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            continue
        del graph.initializers[name]
        value.const_value = None
        canonical = renamed[name]
        if canonical in lifted:
            value.replace_all_uses_with(lifted[canonical])
            continue
        value.name = canonical
        lifted[canonical] = value
        graph.inputs.append(value)
    return list(lifted)


def _name_interface(model: ir.Model, spec: GraphSpec) -> None:
    import onnx_ir as ir

    symbols: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, spec.inputs, strict=False):
        value.name = tensor.name
        for old, new in zip(value.shape or (), tensor.shape, strict=True):
            if isinstance(old, ir.SymbolicDim):
                symbols[str(old.value)] = str(new)
        value.shape = ir.Shape(tensor.shape)
    _rename_dimensions(model.graph, symbols)
    for value, tensor in zip(model.graph.outputs, spec.outputs, strict=True):
        value.name = tensor.name
        value.shape = ir.Shape(tensor.shape)
    model.graph.name = spec.name
    model.producer_name, model.producer_version = "vlmc", None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _rename_dimensions(graph: ir.Graph, symbols: Mapping[str, str]) -> None:
    """The tracer's symbols by the names of the specs; what it derived from them is dropped."""
    import onnx_ir as ir

    for node in graph:
        for value in node.outputs:
            if value.shape is None:
                continue
            value.shape = ir.Shape(
                symbols.get(str(dim.value)) if isinstance(dim, ir.SymbolicDim) else dim
                for dim in value.shape
            )
