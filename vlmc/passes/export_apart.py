"""One graph exported by a process of its own, beside the others: exporting keeps one core busy."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmc.machine import processors
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.export import GraphSpec, export_graph
from vlmc.passes.garbage import seldom_collected

if TYPE_CHECKING:
    from vlmc.families.spec import Family, ModelFacts

# Of a smaller checkpoint, another process would not begin before this one is done.
_LARGE_BYTES = 4 << 30
_NAMES = "names.json"


@dataclass(frozen=True)
class Told:
    """What the process makes: the arguments of ``transform``, and the graph."""

    folder: Path
    family: Family
    facts: ModelFacts
    index: Mapping[str, TensorRef]
    ctx_len: int
    spec: GraphSpec


@contextmanager
def exported_apart(told: Told) -> Iterator[Mapping[str, Callable[[Path], list[str] | None]]]:
    """Begins with a graph of a large model where there is a core for it; see ``export``.

    What goes wrong there is left to this process, which then says so.
    """
    if processors() < 2 or sum(ref.nbytes for ref in told.index.values()) < _LARGE_BYTES:
        yield {}
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Made for each model, that one function is nothing to send; its graphs have no use for it.
        facts = replace(told.facts, image_tokens=_unknown)
        (folder / "told").write_bytes(pickle.dumps(replace(told, facts=facts)))
        command = [sys.executable, "-m", __name__, name]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:

            def wait(out: Path) -> list[str] | None:
                if process.wait():
                    return None
                shutil.move(folder / f"{told.spec.name}.onnx", out)
                names: list[str] = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
                return names

            try:
                yield {told.spec.name: wait}
            finally:
                process.kill()


def _unknown(height: int, width: int) -> int:
    raise NotImplementedError


@seldom_collected()
def _export(folder: Path) -> None:
    from vlmc.passes.transform import transform

    told: Told = pickle.loads((folder / "told").read_bytes())
    model = transform(told.folder, told.family, told.facts, told.index, told.ctx_len)
    names = export_graph(model, told.spec, folder)
    (folder / _NAMES).write_text(json.dumps(names), encoding="utf-8")


if __name__ == "__main__":
    _export(Path(sys.argv[1]))
