"""A program opened by onnxruntime on the CPU: weights mapped, caches written in place."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.backends.onnxruntime import native
from vlmc.backends.onnxruntime.graph import domain_version, external_locations
from vlmc.backends.onnxruntime.in_place import InPlaceSession, reads_in_place
from vlmc.backends.onnxruntime.segments import SegmentedSession
from vlmc.backends.onnxruntime.settings import session_options
from vlmc.backends.spec import Array, OpenOptions, Session, SessionError
from vlmc.backends.together import ManySession
from vlmc.bundle.manifest import ElementType, ProgramSpec, TensorSpec
from vlmc.errors import VlmcError

_ELEMENTS: dict[str, ElementType] = {
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}
# Threads that went on spinning behind a run would take a core from the next session's: 30 ms.
_CALM = "session.force_spinning_stop"
_OLDER = "their kernels are not among those of this vlmc: build the bundle again, or update vlmc"
_SHRINK = "memory.enable_memory_arena_shrinkage"
# A run on fewer bytes takes some tens of MiB. To keep them costs less than new pages each time: of
# a tower for 336 x 336 pixels 23 MiB, or 4 % of its time.
_SMALL = 4 << 20


def open_session(
    folder: Path, program: ProgramSpec, options: OpenOptions, *, refused: str = ""
) -> Session:
    """Opens one program of a bundle.

    External data must lie under ``weights/`` and be listed in ``program.weights``; onnxruntime
    is given the bundle's folder as the root, so locations read ``weights/NAME.bin``. ``refused``
    is why faster ones than these were not taken, where that is known.

    Raises:
        VlmcError: The graph points elsewhere, cannot be loaded, or does not match ``program``.
    """
    import onnxruntime as ort

    library = None if options.portable else native.library()
    file = program.kernels if library and program.kernels else program.file
    if options.pieces and file == program.kernels and not reads_in_place(folder / file):
        file = program.file
    place = str(folder / file)
    graph = (folder / file).read_bytes()
    try:
        locations = external_locations(memoryview(graph))
        version = domain_version(memoryview(graph), native.DOMAIN)
    except VlmcError as error:
        raise error.located(place) from error
    for location in sorted(locations):
        if location not in program.weights or not location.startswith("weights/"):
            raise VlmcError(f"the graph points to {location!r}, not one of its weights", at=place)
    if file == program.kernels and version not in (None, native.INTERFACE) and not options.strict:
        portable = program.model_copy(update={"kernels": None})
        return open_session(folder, portable, options, refused=_OLDER)
    if options.pieces:
        return options.pieces.session(
            (folder, file),
            lambda: _opened_by_little(folder, program, options, whole=file == program.kernels),
        )
    settings = session_options(options.threads, folder)
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spin)))
    settings.add_session_config_entry(_CALM, "1")
    if file == program.kernels:
        settings.register_custom_ops_library(str(library))
        settings.add_session_config_entry(native.THREADS, str(options.threads))
        # To look up where each value of the last run lay costs a decode step more than to ask for
        # memory: nearly all of it is one workspace (see chain.cpp).
        settings.enable_mem_pattern = options.shrink
    try:
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    except _refusals() as error:
        raise VlmcError(f"onnxruntime refuses the program: {error}", at=place) from error
    _same(session.get_inputs(), program.inputs, place)
    _same(session.get_outputs(), program.outputs, place)
    if program.kernels and file != program.kernels:
        refused = "asked for" if options.portable else native.why_not()
    return OrtSession(session, program, refused, shrink=options.shrink)


def _opened_by_little(
    folder: Path, program: ProgramSpec, options: OpenOptions, *, whole: bool
) -> ManySession:
    """For ``options.pieces``; whole: where its kernels read the weights in place."""
    if not whole:
        return SegmentedSession(folder, program, options)
    session = open_session(folder, program, replace(options, pieces=None, spin=False))
    return InPlaceSession(session, [folder / name for name in program.weights])


def _refusals() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = "Fail InvalidGraph InvalidProtobuf InvalidArgument NoSuchFile NotImplemented"
    names += " RuntimeException EPFail"
    return RuntimeError, *(getattr(state, name) for name in names.split())


class OrtSession:
    """See ``vlmc.backends.Session``; not safe for two threads at once."""

    def __init__(self, session: Any, program: ProgramSpec, portable: str, *, shrink: bool) -> None:
        import onnxruntime as ort

        self._session = session
        self.portable = portable
        self.kernels = "onnxruntime"
        if program.kernels and not portable:
            self.kernels += f", {native.instructions()} kernels of vlmc"
        self._inputs = {spec.name: spec for spec in program.inputs}
        self._outputs = {spec.name: spec for spec in program.outputs}
        self._binding = session.io_binding()
        self._fed: dict[str, Array] = {}
        self._written: dict[str, Array] = {}
        # The mappings of the last run, where all its outputs were the caller's.
        self._same: tuple[object, object] = (None, None)
        self._order: list[str] = []  # outputs come back in the order they were first bound
        self._run_options = None
        if shrink:
            self._run_options = ort.RunOptions()
            self._run_options.add_run_config_entry(_SHRINK, "cpu:0")

    def run(
        self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """See ``vlmc.backends.Session.run``.

        Raises:
            VlmcError: A feed is missing, unknown, or of another dtype or shape than declared.
            SessionError: The program failed.
        """
        if feeds is self._same[0] and into is self._same[1]:
            self._execute(feeds)
            return {}
        self._same = (None, None)
        into = into or {}
        if feeds.keys() != self._inputs.keys() or not into.keys() <= self._outputs.keys():
            odd = sorted(
                (feeds.keys() ^ self._inputs.keys()) | (into.keys() - self._outputs.keys())
            )
            raise VlmcError(f"inputs or outputs missing or unknown: {', '.join(odd)}")
        # An array stays bound as long as the same one is given: the dozens of states of a cache
        # would cost more each step than some models' layers. Bound arrays are kept alive here.
        for name, array in feeds.items():
            if self._fed.get(name) is not array:
                _check(self._inputs[name], array)
                self._binding.bind_input(name, *_pointer(array))
                self._fed[name] = array
        for name, array in into.items():
            if self._written.get(name) is not array:
                _check(self._outputs[name], array)
                self._binding.bind_output(name, *_pointer(array))
                self._written[name] = array
        free = [name for name in self._outputs if name not in into]
        for name in free:
            self._written.pop(name, None)
            self._binding.bind_output(name, "cpu")
        self._order += [name for name in (*into, *free) if name not in self._order]
        self._execute(feeds)
        if not free:
            self._same = (feeds, into)
        values = self._binding.get_outputs_as_ortvaluevector()
        return {name: values[self._order.index(name)].numpy() for name in free}

    def _execute(self, feeds: Mapping[str, Array]) -> None:
        options = self._run_options
        if options is not None and sum(array.nbytes for array in feeds.values()) <= _SMALL:
            options = None
        try:
            self._session.run_with_iobinding(self._binding, options)
        except _refusals() as error:
            raise SessionError(f"onnxruntime failed: {error}") from error


def _pointer(array: Array) -> tuple[object, ...]:
    """The arguments of onnxruntime's ``bind_*`` after the name."""
    return "cpu", 0, array.dtype, array.shape, array.ctypes.data


def _check(spec: TensorSpec, array: Array) -> None:
    fits = len(spec.shape) == array.ndim and all(
        isinstance(size, str) or size == there
        for size, there in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(spec.dtype) or not fits or not array.flags.c_contiguous:
        raise VlmcError(
            f"'{spec.name}' is {array.dtype} {list(array.shape)} with strides "
            f"{list(array.strides)}, the program takes {spec.dtype} {list(spec.shape)}, contiguous"
        )


def _same(there: list[Any], declared: tuple[TensorSpec, ...], place: str) -> None:
    names = [value.name for value in there]
    if sorted(names) != sorted(spec.name for spec in declared):
        raise VlmcError(f"the program has {names}, not what the manifest declares", at=place)
    for value, spec in zip(there, sorted(declared, key=lambda s: names.index(s.name)), strict=True):
        # Output shapes may be known to onnxruntime in less detail than to the manifest.
        shape_fits = len(value.shape) == len(spec.shape) and all(
            not isinstance(size, int) or not isinstance(wanted, int) or size == wanted
            for size, wanted in zip(value.shape, spec.shape, strict=True)
        )
        if _ELEMENTS.get(value.type) != spec.dtype or not shape_fits:
            raise VlmcError(
                f"'{spec.name}' is {value.type} {value.shape} in the program, "
                f"{spec.dtype} {list(spec.shape)} in the manifest",
                at=place,
            )
