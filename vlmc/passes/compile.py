"""compile: neutral graphs and stored weights -> the backend's own programs."""

from collections.abc import Mapping
from pathlib import Path

from vlmc.backends.spec import Backend
from vlmc.passes.quantize import read_weights
from vlmc.schema import Split


def compile_programs(
    graphs: Mapping[str, Path], quantized: Path, backend: Backend, split: Split, out: Path
) -> None:
    """Writes ``programs/*.onnx``; weights stay where the quantize pass put them.

    Raises:
        ValueError: A weight is stored in a format the backend does not know: the plan should
            have refused it.
    """
    weights = read_weights(quantized)
    for name, weight in weights.items():
        if weight.format not in backend.accepts:
            raise ValueError(f"'{backend.name}' cannot run {weight.format} (of '{name}')")
    backend.lower(graphs, weights, split, out)
