"""compile: neutral graphs and stored weights -> the backend's own programs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vlmc.backends.spec import WHOLE_BYTES, Backend, StoredWeight
from vlmc.backends.threads import default_threads
from vlmc.bundle.store import canonical_json
from vlmc.passes.quantize import read_weights
from vlmc.passes.weight_stream import part_bytes
from vlmc.quantizers import QUANTIZERS
from vlmc.schema import Json, Split

TARGET = "target.json"
# Of a weight that is multiplied to compare kernels: enough for each of them, and soon packed.
_ROWS, _FLOAT_BITS = 256, 16


@dataclass(frozen=True)
class Target:
    """This machine, as far as a choice of kernels depends on it.

    Attributes:
        cpu: Its name.
        threads: That a program will use.
        tokens: Numbers of rows that are multiplied at once: decoding, a chunk, between them.
    """

    cpu: str
    threads: int
    tokens: tuple[int, ...]


def compile_programs(
    graphs: Mapping[str, Path],
    quantized: Path,
    backend: Backend,
    split: Split,
    out: Path,
    target: Target | None = None,
) -> None:
    """Writes ``programs/*.onnx``; weights stay where the quantize pass put them.

    Args:
        graphs: The neutral graphs by name.
        quantized: The quantize pass's folder.
        backend: Which engine they are for.
        split: One program or two.
        out: The folder to write to.
        target: The machine to choose kernels for, which must be this one: each product is timed
            and the figures go to ``target.json``. None: no choice depends on a machine.

    Raises:
        ValueError: A weight is stored in a format the backend does not know: the plan should
            have refused it.
        VlmcError: Of weights so large that the check runs one kind of programs, the kernels of the
            two kinds do not agree.
    """
    weights = read_weights(quantized)
    for name, weight in weights.items():
        if weight.format not in backend.accepts:
            raise ValueError(f"'{backend.name}' cannot run {weight.format} (of '{name}')")
    measured: list[Json] = []
    if target is not None:
        measured = backend.measure(graphs, weights, quantized, target.tokens, target.threads)
        described = {"cpu": target.cpu, "threads": target.threads, "products": measured}
        (out / TARGET).write_bytes(canonical_json(described))
    if sum(part.nbytes for one in weights.values() for part in one.parts.values()) > WHOLE_BYTES:
        some = {name: _some_rows(weight) for name, weight in weights.items()}
        backend.hold_alike(graphs, some, quantized, default_threads())
    backend.lower(graphs, weights, split, out, backend.slower(measured))


def _some_rows(weight: StoredWeight) -> StoredWeight:
    """The first rows of a large quantized weight; as many are behind its last whole panel."""
    quantizer = QUANTIZERS[weight.format]
    if quantizer.bits >= _FLOAT_BITS or weight.rows < 2 * _ROWS:
        return weight
    rows = _ROWS + weight.rows % _ROWS
    parts = {
        part.suffix: replace(weight.parts[part.suffix], shape=part.shape, nbytes=part_bytes(part))
        for part in quantizer.parts(rows, weight.columns, weight.block)
    }
    return replace(weight, rows=rows, parts=parts)
