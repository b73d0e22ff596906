"""A program run piece by piece, each piece opened for its turn only: little memory, slow.

The build checks bundles that are larger than the memory it allows itself this way. Needs onnx.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.backends.onnxruntime.pieces import Piece, cut, names_read, stored_bytes
from vlmc.backends.onnxruntime.settings import session_options
from vlmc.backends.spec import Array, OpenOptions
from vlmc.backends.together import Call
from vlmc.bundle.manifest import ProgramSpec

# Weights a piece may hold, unless a single node needs more; how many are opened at a time.
PIECE_BYTES, _AHEAD = 64 << 20, 2
# What is opened alone, and of floats, unpacked: it takes several times its size.
_HUGE_BYTES, _HUGE_FLOAT_BYTES = 256 << 20, 128 << 20


class SegmentedSession:
    """See ``vlmc.backends.together.ManySession``; results are those of the whole program.

    Opening a piece takes far longer than running it, most of it on one core: the next two are
    opened meanwhile, and each is run for all calls before it is closed.

    Args:
        folder: The bundle.
        program: Which of its programs.
        options: Threads; the rest does not apply.
    """

    kernels = "onnxruntime, piece by piece"
    portable = "piece by piece"

    def __init__(self, folder: Path, program: ProgramSpec, options: OpenOptions) -> None:
        import onnx

        self._model = onnx.load(folder / program.file, load_external_data=False)
        self._folder = folder
        self._program = program
        self._threads = options.threads
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._pieces = cut(self._model.graph, self._weights, PIECE_BYTES)

    def run_all(self, calls: Sequence[Call]) -> list[dict[str, Array]]:
        """See ``vlmc.backends.together.ManySession.run_all``."""
        runs = [_Values(dict(feeds), dict(into)) for feeds, into in calls]
        last_use = {name: at for at, piece in enumerate(self._pieces) for name in piece.reads}
        kept = {spec.name for spec in self._program.outputs}
        types = self._types({name: _type_of(array) for name, array in runs[0].held.items()})
        opening: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(_AHEAD) as ahead:
            for at, piece in enumerate(self._pieces):
                for following in self._pieces[at + len(opening) : at + self._room(at)]:
                    opening.append(ahead.submit(self._open, following, types))
                session = opening.popleft().result()
                later = {name for name, last in last_use.items() if last > at}
                for run in runs:
                    run.through(session, piece, later, kept)
                del session
        return [run.outputs(kept) for run in runs]

    def _room(self, at: int) -> int:
        """How many pieces from that one on there may be at a time."""
        some = self._pieces[at : at + _AHEAD + 1]
        alone = (place for place, piece in enumerate(some) if self._is_huge(piece))
        return max(1, next(alone, len(some)))

    def _types(self, given: Mapping[str, int]) -> dict[str, int]:
        """What the values between pieces are, as ONNX numbers it, of what is fed: ``given``.

        The engine says so of the whole program, opened with its weights as inputs: without them.
        """
        import onnxruntime as ort

        nodes = {tuple(node.output): node for piece in self._pieces for node in piece.nodes}
        apart = {name for name, tensor in self._weights.items() if tensor.external_data}
        types = {**given, **{name: self._weights[name].data_type for name in apart}}
        read = {name for node in nodes.values() for name in names_read(node)}
        whole = Piece(
            nodes=tuple(nodes.values()),
            reads=tuple(sorted(read & types.keys())),
            gives=tuple(dict.fromkeys(name for piece in self._pieces for name in piece.gives)),
            weights=tuple(sorted(read & self._weights.keys() - apart)),
        )
        settings = session_options(self._threads, log=3)
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._session(whole, types, settings)
        found = {value.name: value.type for value in session.get_outputs()}
        return {**given, **{name: _type_named(kind) for name, kind in found.items()}}

    def _open(self, piece: Piece, types: Mapping[str, int]) -> Any:
        """A session of one piece; ``types`` are its inputs', as ONNX numbers them."""
        self._read_ahead(piece)
        settings = session_options(self._threads, self._folder, log=3)
        # A core that waits for work busily is one that opens the next piece more slowly.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A packed copy of a piece is affordable, and blocks of codes that are not packed would be
        # unpacked to floats, eight times their size. Of one huge matrix of floats it is not.
        if any(self._is_huge_float(name) for name in piece.weights):
            settings.add_session_config_entry("session.disable_prepacking", "1")
        return self._session(piece, types, settings)

    def _session(self, piece: Piece, types: Mapping[str, int], settings: Any) -> Any:
        import onnx
        import onnxruntime as ort

        graph = onnx.helper.make_graph(
            list(piece.nodes),
            "piece",
            [
                onnx.helper.make_tensor_value_info(name, types[name], self._shape(name))
                for name in piece.reads
            ],
            [onnx.ValueInfoProto(name=name) for name in piece.gives],
            [self._weights[name] for name in piece.weights],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        model.ir_version = self._model.ir_version
        return ort.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )

    def _shape(self, name: str) -> list[int] | None:
        """Of a weight that is read as an input; nothing is said of others."""
        return list(self._weights[name].dims) if name in self._weights else None

    def _read_ahead(self, piece: Piece) -> None:
        """Asks for a piece's weights at once: the engine maps them, and waits page by page."""
        if not hasattr(os, "posix_fadvise"):  # not on macOS
            return
        for name in piece.weights:
            entry = {e.key: e.value for e in self._weights[name].external_data}
            if not entry:
                continue
            file = os.open(self._folder / entry["location"], os.O_RDONLY)
            try:
                where = int(entry["offset"]), int(entry["length"])
                os.posix_fadvise(file, *where, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)

    def _is_huge(self, piece: Piece) -> bool:
        return sum(stored_bytes(self._weights[name]) for name in piece.weights) > _HUGE_BYTES

    def _is_huge_float(self, name: str) -> bool:
        import onnx

        tensor = self._weights[name]
        is_float = tensor.data_type == onnx.TensorProto.FLOAT
        return is_float and stored_bytes(tensor) > _HUGE_FLOAT_BYTES


class _Values:
    """The values of one run that are still needed, and the memory its outputs go to."""

    def __init__(self, held: dict[str, Array], into: dict[str, Array]) -> None:
        self.held = held
        self._into = into

    def through(self, session: Any, piece: Piece, later: set[str], kept: set[str]) -> None:
        """Runs a piece; ``later`` are the names that those behind it read.

        An output goes straight to its place, unless that is memory which is read later: a cache is
        written where it lies, and only where it changes.
        """
        binding = session.io_binding()
        fed = [np.ascontiguousarray(self.held[name]) for name in piece.reads]
        for name, array in zip(piece.reads, fed, strict=True):
            binding.bind_input(name, *_pointer(array))
        still = [self.held[name] for name in later if name in self.held]
        placed = {
            name: self._into[name]
            for name in piece.gives
            if name in self._into and all(array is not self._into[name] for array in still)
        }
        for name in piece.gives:
            where = _pointer(placed[name]) if name in placed else ("cpu",)
            binding.bind_output(name, *where)
        session.run_with_iobinding(binding)
        found = binding.get_outputs_as_ortvaluevector()
        for name, value in zip(piece.gives, found, strict=True):
            self.held[name] = placed[name] if name in placed else value.numpy()
        for name in [name for name in self.held if name not in later | kept]:
            del self.held[name]

    def outputs(self, kept: set[str]) -> dict[str, Array]:
        """What the program gives beside what it was to write elsewhere."""
        found = {name: self.held[name] for name in kept}
        for name, place in self._into.items():
            array = found.pop(name)
            if array is not place:
                np.copyto(place, array)
        return found


def _pointer(array: Array) -> tuple[object, ...]:
    """The arguments of onnxruntime's ``bind_*`` after the name."""
    return "cpu", 0, array.dtype, array.shape, array.ctypes.data


def _type_of(array: Array) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _type_named(name: str) -> int:
    """ONNX's number for what onnxruntime calls ``tensor(float)``."""
    import onnx

    return int(onnx.TensorProto.DataType.Value(name.removeprefix("tensor(")[:-1].upper()))
