"""Exports models at their published size, without weights.

``python -m tests.benchmarks.real_size [NAME...]``

Each of ``tests/data/configs`` that is named (all of ``REAL_SIZE`` otherwise) is built on tensors
that hold no data, exported and simplified in a process of its own. Prints, for each, the seconds
that took, the most memory the process held, and how many nodes the graphs have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
REAL_SIZE = (
    "llava-1.5-7b",
    "llava-v1.6-mistral-7b",
    "llava-onevision-0.5b",
    "fastvlm-0.5b",
    "granite-vision-3.2-2b",
    "granite-vision-4.1-4b",
    "qwen2.5-vl-3b",
    "qwen2.5-omni-7b",
    "internvl3-1b",
    "gemma-3-4b-it",
    "gemma-3n-e2b-it",
    "gemma-4-e2b-it",
    "mistral-small-3.1",
    "smolvlm-256m",
    "granite-docling-500m",
    "ovis2-1b",
    "idefics2-8b",
    "blip2-opt-2.7b",
    "fuyu-8b",
    "phi-4-multimodal",
    "kosmos-2-patch14-224",
    "chameleon-7b",
    "perception-lm-1b",
    "molmo2-4b",
    "instructblip-vicuna-7b",
)
"""What ``test_real_size.py`` exports; the README's table tells of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(REAL_SIZE))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.names or REAL_SIZE:
        found = export_here(name) if options.here else measure(name)
        print(json.dumps(found), flush=True)


def measure(name: str) -> dict[str, Any]:
    """``export_here`` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.real_size", "--here", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} cannot be exported: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def export_here(name: str) -> dict[str, Any]:
    """Seconds, peak memory of this process in MiB, and nodes of the graphs of one model.

    ``cpu-seconds`` are this process's own from its start, whatever else the machine does.
    """
    from vlmc.passes.export import export
    from vlmc.passes.simplify import COUNTS, simplify
    from vlmc.passes.transform import transform
    from vlmc.plan import resolve
    from vlmc.recipe import Recipe
    from vlmc.scope import graph_specs
    from vlmc.sources import read_checkpoint

    started = time.perf_counter()
    folder = CONFIGS / name
    plan = resolve(Recipe(model="./model", name=name), read_checkpoint(folder, tokenizer=False))
    index = stand_ins(folder, plan.family.timm_tower, plan.family.part)
    with tempfile.TemporaryDirectory() as scratch:
        exported, simple = Path(scratch) / "exported", Path(scratch) / "simple"
        exported.mkdir()
        simple.mkdir()
        transformed = transform(folder, plan.family, plan.facts, index, plan.limits.ctx_len)
        specs = graph_specs(plan)
        export(transformed, index, specs, exported)
        simplify({spec.name: exported / f"{spec.name}.onnx" for spec in specs}, simple)
        counts = json.loads((simple / COUNTS).read_text(encoding="utf-8"))
        attention = {spec.name: kinds(simple / f"{spec.name}.onnx") for spec in specs}
    return {
        "name": name,
        "family": plan.family.name,
        "parameters": sum(size_of(ref.shape) for ref in index.values()),
        "layers": plan.facts.text.layers,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu-seconds": round(time.process_time(), 1),
        "peak": high_water() // 1024,
        "nodes": {graph: steps["fused"] for graph, steps in counts.items()},
        "attention": attention,
    }


def stand_ins(folder: Path, timm_tower: Any = None, part: str | None = None) -> dict[str, Any]:
    """Tensors as a checkpoint of this configuration has them: names and shapes, no data."""
    from vlmc.passes.checkpoint import TensorRef
    from vlmc.passes.transform import build_module

    model = build_module(folder, "eager", timm_tower=timm_tower, part=part)
    saved = model.state_dict().keys()
    numbers = {k: value for k, value in model.named_buffers() if k in saved}
    nowhere = Path("nowhere.safetensors")
    return {
        key: TensorRef(key, nowhere, "BF16", tuple(value.shape), 0, 2 * value.numel())
        for key, value in {**dict(model.named_parameters()), **numbers}.items()
    }


def size_of(shape: tuple[int, ...]) -> int:
    """Numbers in a tensor."""
    size = 1
    for length in shape:
        size *= length
    return size


def kinds(graph: Path) -> int:
    """Attention nodes of a graph."""
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    return sum(node.domain == "vlmc" and node.op_type == "Attention" for node in nodes)


def high_water() -> int:
    """The most memory this process held so far, in KiB (Linux)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
