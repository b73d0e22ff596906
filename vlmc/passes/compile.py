"""compile: neutral graphs and stored weights -> the backend's own programs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmc.backends.spec import Backend
from vlmc.bundle.store import canonical_json
from vlmc.passes.quantize import read_weights
from vlmc.schema import Json, Split

TARGET = "target.json"


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
    backend.lower(graphs, weights, split, out, backend.slower(measured))
