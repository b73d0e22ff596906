"""A program run piece by piece, each piece opened for its turn only: little memory, slow.

The build checks bundles that are larger than the memory it allows itself this way. Needs onnx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmc.backends.spec import Array, OpenOptions
from vlmc.bundle.manifest import ProgramSpec

if TYPE_CHECKING:
    import onnx

# Weights a piece may hold, unless a single node needs more.
PIECE_BYTES = 128 << 20
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class _Piece:
    """Consecutive nodes, and the values that cross their border."""

    nodes: tuple[onnx.NodeProto, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    weights: tuple[str, ...]


class SegmentedSession:
    """See ``vlmc.backends.Session``; results are those of the whole program.

    Args:
        folder: The bundle.
        program: Which of its programs.
        options: Threads; the rest does not apply.
    """

    def __init__(self, folder: Path, program: ProgramSpec, options: OpenOptions) -> None:
        import onnx

        self._model = onnx.load(folder / program.file, load_external_data=False)
        self._folder = folder
        self._program = program
        self._threads = options.threads
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._pieces = _cut(self._model.graph, self._weights, PIECE_BYTES)

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See ``vlmc.backends.Session.run``."""
        values: dict[str, Array] = dict(feeds)
        last_use = {name: at for at, piece in enumerate(self._pieces) for name in piece.reads}
        kept = {spec.name for spec in self._program.outputs}
        for at, piece in enumerate(self._pieces):
            session = self._open(piece, values)
            found = session.run(list(piece.gives), {name: values[name] for name in piece.reads})
            values.update(zip(piece.gives, found, strict=True))
            for name in [n for n in values if last_use.get(n, -1) <= at and n not in kept]:
                del values[name]
        outputs = {spec.name: values[spec.name] for spec in self._program.outputs}
        for name, array in (into or {}).items():
            np.copyto(array, outputs.pop(name))
        return outputs

    def _open(self, piece: _Piece, values: Mapping[str, Array]) -> Any:
        """A session of one piece; its inputs' types are those of the values at hand."""
        import onnx
        import onnxruntime as ort

        inputs = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype), None
            )
            for name in piece.reads
        ]
        graph = onnx.helper.make_graph(
            list(piece.nodes),
            "piece",
            inputs,
            [onnx.ValueInfoProto(name=name) for name in piece.gives],
            [self._weights[name] for name in piece.weights],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        model.ir_version = self._model.ir_version
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = self._threads
        settings.log_severity_level = 3
        settings.add_session_config_entry(_FOLDER, str(self._folder))
        # A packed copy of a piece is affordable, and blocks of codes that are not packed would be
        # unpacked to floats, eight times their size. Of one huge matrix of floats it is not.
        if any(self._is_huge_float(name) for name in piece.weights):
            settings.add_session_config_entry("session.disable_prepacking", "1")
        return ort.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def _is_huge_float(self, name: str) -> bool:
        import onnx

        tensor = self._weights[name]
        is_float = tensor.data_type == onnx.TensorProto.FLOAT
        return is_float and _stored_bytes(tensor) > PIECE_BYTES


def _cut(
    graph: onnx.GraphProto, weights: Mapping[str, onnx.TensorProto], limit: int
) -> list[_Piece]:
    """The nodes in their order, cut so that none but a single node holds over ``limit`` bytes."""
    groups: list[list[onnx.NodeProto]] = [[]]
    held: set[str] = set()
    for node in graph.node:
        new = {name for name in _names_read(node) if name in weights} - held
        size = sum(_stored_bytes(weights[name]) for name in held | new)
        if groups[-1] and new and size > limit:
            groups.append([])
            held = set()
            new = {name for name in _names_read(node) if name in weights}
        groups[-1].append(node)
        held |= new
    outputs = {value.name for value in graph.output}
    reads = [{n for node in group for n in _names_read(node)} for group in groups]
    pieces = []
    for at, group in enumerate(groups):
        made = [name for node in group for name in node.output if name]
        wanted = outputs.union(*reads[at + 1 :])
        pieces.append(
            _Piece(
                nodes=tuple(group),
                reads=tuple(sorted(reads[at] - set(made) - weights.keys())),
                gives=tuple(name for name in made if name in wanted),
                weights=tuple(sorted(reads[at] & weights.keys())),
            )
        )
    return pieces


def _names_read(node: onnx.NodeProto) -> Iterable[str]:
    """Inputs of a node, and what its branches read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            made = {name for inner in attribute.g.node for name in inner.output}
            for inner in attribute.g.node:
                yield from (name for name in _names_read(inner) if name not in made)


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data)
