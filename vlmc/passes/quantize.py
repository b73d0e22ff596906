"""quantize: which weight is stored how; then all of them streamed from the checkpoint to disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from vlmc.backends.spec import StoredPart, StoredWeight
from vlmc.bundle.manifest import FileEntry
from vlmc.errors import VlmcError
from vlmc.machine import memory
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.export import PARAMETERS
from vlmc.passes.scaling import read_folds, scalings
from vlmc.passes.weights import WeightJob, Written, write_weights
from vlmc.quantizers import QUANTIZERS

WEIGHTS = "weights.json"
FOLDER = "weights"

# The word of a recipe -> the storage format of a matrix that is multiplied, of one that is read by
# few tokens only (the head), where exactness costs no time, and of one that is looked up.
_MATRIX = {"fp32": "fp32", "fp16": "fp16", "int8": "int8_channel", "int4": "int4_panel"}
_HEAD = {**_MATRIX, "int8": "int8_panel"}
_TABLE = {**_MATRIX, "int8": "int8_block", "int4": "int4_block"}
# Words for which calibrating pays.
_CALIBRATED = ("int8", "int4")


@dataclass(frozen=True)
class Formats:
    """Precision words of a recipe, resolved: nothing is left to a default."""

    vision: str
    language: str
    embedding: str
    head: str
    block: int

    def calibrated(self) -> dict[str, str]:
        """The graphs whose matrices are read with 8-bit activations, and their format."""
        words = {"vision": self.vision, "language": self.language}
        return {name: _MATRIX[word] for name, word in words.items() if word in _CALIBRATED}


def quantize(
    graphs: Mapping[str, Path],
    exported: Path,
    index: Mapping[str, TensorRef],
    formats: Formats,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    folds: Path | None = None,
) -> dict[str, FileEntry]:
    """Writes ``weights/NAME.bin`` for each graph and ``weights.json``, which says what is where.

    Args:
        graphs: Neutral graphs by name; their weight inputs are named by parameter.
        exported: The export pass's folder (``parameters.json``).
        index: The checkpoint's tensors.
        formats: Precision of each kind of weight.
        out: The folder to write to.
        progress: Called with bytes done and in all.
        folds: What the calibration found to move between weights, if there was one.

    Returns:
        The weights files, by path below ``out``.

    Raises:
        VlmcError: A weight cannot be read, or does not fit its format; two formats for one table.
    """
    import onnx_ir as ir

    parameters: dict[str, Any] = json.loads((exported / PARAMETERS).read_text(encoding="utf-8"))
    tables = {parameters["embedding"]: formats.embedding, parameters["head"]: formats.head}
    if len(tables) == 1 and formats.embedding != formats.head:
        raise VlmcError(
            f"this model's output head is its embedding, stored once: '{formats.embedding}' and "
            f"'{formats.head}' exclude each other",
            at="quantize.embedding",
            hint="give quantize.embedding and quantize.head the same value",
        )
    sizes = {name: (index[key].shape or (1,))[0] for name, key in parameters["sources"].items()}
    moved = scalings(read_folds(folds), sizes) if folds is not None else {}
    # Of a checkpoint that fills the memory, what is read gives way to what is written, which the
    # next passes read.
    crowding = sum(ref.nbytes for ref in index.values()) > memory() / 2
    (out / FOLDER).mkdir()
    planned: dict[str, list[WeightJob]] = {}
    for name, path in graphs.items():
        graph = ir.load(path).graph
        matrices, experts = _weights_of(graph, "Linear", 1), _weights_of(graph, "Experts", 3)
        # By token, not by place: as long as the embedding.
        words = sizes[parameters["embedding"]]
        looked_up = {table for table in _tables_of(graph) if sizes.get(table, 0) >= words}
        word = formats.language if name == "language" else formats.vision
        jobs = []
        for weight in parameters["programs"][name]:
            if name != "language" and weight in parameters["programs"]["language"]:
                continue  # stored once, as the decoder has it
            source = parameters["sources"][weight]
            if weight in tables and name == "language":
                form = (_HEAD if weight in matrices else _TABLE)[tables[weight]]
            elif weight in looked_up - matrices and name == "language":
                form = _TABLE[formats.embedding]
            elif weight in experts:
                form = _TABLE[word]  # one expert's matrices are looked up as a table's row
            elif weight in matrices:
                form = _MATRIX[word]
            elif word == "fp16" and len(index[source].shape) > 1:
                form = "fp16"  # convolutions and position tables
            else:
                form = "fp32"
            scaling = moved.get(weight)
            jobs.append(WeightJob(weight, (source,), form, formats.block, scaling=scaling))
        planned[f"{FOLDER}/{name}.bin"] = jobs
    told = _Told(progress)

    def write(file: str) -> Written:
        tell = told.of(file)
        return write_weights(planned[file], index, out / file, progress=tell, once=crowding)

    # A file's digest is made by one core, and takes as long as all of its weights where these are
    # stored as they are: the other file is made beside.
    with ThreadPoolExecutor(len(planned)) as pool:
        writing = {file: pool.submit(write, file) for file in planned}
        try:
            wait(writing.values(), return_when=FIRST_EXCEPTION)
            written = {file: one.result() for file, one in writing.items() if one.done()}
        except BaseException:  # an interrupt too
            told.stop()
            raise
    described: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}
    for file, jobs in planned.items():
        stored, files[file] = written[file]
        for job in jobs:
            shape = index[job.sources[0]].shape
            rows, columns = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
            parts = QUANTIZERS[job.format].parts(rows, columns, job.block)
            described[job.name] = {
                "format": job.format,
                "rows": rows,
                "columns": columns,
                "block": job.block,
                "parts": {
                    part.suffix: {
                        **asdict(stored[job.name + part.suffix]),
                        "name": job.name + part.suffix,
                    }
                    for part in parts
                },
            }
    text = json.dumps(described, indent=1, sort_keys=True)
    (out / WEIGHTS).write_text(text, encoding="utf-8")
    return files


def read_weights(folder: Path) -> dict[str, StoredWeight]:
    """What ``quantize`` wrote, for a backend's ``lower``."""
    described = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    return {
        name: StoredWeight(
            format=weight["format"],
            rows=weight["rows"],
            columns=weight["columns"],
            block=weight["block"],
            parts={
                suffix: StoredPart(
                    name=part["name"],
                    file=f"{FOLDER}/{part['file']}",
                    offset=part["offset"],
                    nbytes=part["nbytes"],
                    dtype=part["dtype"],
                    shape=tuple(part["shape"]),
                )
                for suffix, part in weight["parts"].items()
            },
        )
        for name, weight in described.items()
    }


class _Told:
    """What is done of several files, told as one; and how to stop them all."""

    def __init__(self, progress: Callable[[int, int], None] | None) -> None:
        self._progress = progress
        self._lock = Lock()
        self._done: dict[str, tuple[int, int]] = {}
        self._stopped = False

    def of(self, file: str) -> Callable[[int, int], None]:
        """The callback of one file."""

        def tell(done: int, total: int) -> None:
            if self._stopped:
                raise CancelledError
            with self._lock:
                self._done[file] = done, total
                if self._progress:
                    dones, totals = zip(*self._done.values(), strict=True)
                    self._progress(sum(dones), sum(totals))

        return tell

    def stop(self) -> None:
        """Whoever tells next goes no further."""
        self._stopped = True


def _tables_of(graph: Any) -> set[str]:
    """Matrices whose rows are looked up: embeddings, and tables of places."""
    return {
        str(node.inputs[0].name)
        for node in graph
        if (node.domain, node.op_type) == ("", "Gather")
        and node.inputs[0].is_graph_input()
        and len(node.inputs[0].shape or ()) == 2
        and len(node.inputs[1].shape or ()) == 2
    }


def _weights_of(graph: Any, kind: str, first: int) -> set[str]:
    """Weights that neutral nodes of a kind multiply with: their inputs from ``first`` on."""
    stop = first + (1 if kind == "Linear" else 2)
    return {
        str(value.name)
        for node in graph
        if node.domain == "vlmc" and node.op_type == kind
        for value in node.inputs[first:stop]
        if value is not None
    }
