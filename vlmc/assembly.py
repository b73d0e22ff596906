"""What the passes made, put together: the manifest's fields, the files, the report."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmc import __version__
from vlmc.backends import BACKENDS
from vlmc.bundle.manifest import FileEntry, GenerationSpec, ProgramSpec, Source
from vlmc.bundle.publish import Draft
from vlmc.errors import VlmcError
from vlmc.passes.check import FIGURES
from vlmc.passes.compile import TARGET
from vlmc.passes.load import GENERATION
from vlmc.passes.quantize import WEIGHTS
from vlmc.passes.scaling import read_facts
from vlmc.passes.simplify import COUNTS
from vlmc.plan import Plan
from vlmc.recipe import Budgets, recorded
from vlmc.schema import Frozen, Json
from vlmc.sources import SourceFolder
from vlmc.workspace import Artifact, Copies, Workspace, begin_copies

REPORT = "report/build.json"
# Files of the passes that only later passes read.
_NOT_BUNDLED = frozenset({GENERATION, WEIGHTS, FIGURES, TARGET})


def draft_of(
    plan: Plan,
    source: SourceFolder,
    hashes: Mapping[str, str],
    loaded: Artifact,
    compiled: Artifact,
    graphs: Sequence[str],
    tools: Sequence[str],
) -> Draft:
    """The manifest's fields, but those that the bundle's files decide.

    Args:
        plan: What is built.
        source: Where the checkpoint came from.
        hashes: sha256 of its files by name.
        loaded: The load pass's result.
        compiled: The compile pass's.
        graphs: Names of the exported graphs; each has a weights file of its name.
        tools: Distributions whose versions are recorded.
    """
    generation = GenerationSpec.model_validate_json((loaded.folder / GENERATION).read_bytes())
    suffix = BACKENDS[plan.recipe.compile.backend].kernels_suffix

    def reads(program: str, graph: str) -> bool:
        if program == "vision" and plan.facts.looks_up_tokens:
            return True
        return program in (graph, "model")

    programs = {
        program.name: ProgramSpec(
            file=f"programs/{program.name}.onnx",
            kernels=f"programs/{program.name}{suffix}.onnx" if suffix else None,
            weights=tuple(f"weights/{name}.bin" for name in graphs if reads(program.name, name)),
            inputs=program.inputs,
            outputs=program.outputs,
        )
        for program in plan.programs
    }
    return {
        "name": plan.recipe.name,
        "family": plan.family.name,
        "split": plan.recipe.split,
        "programs": programs,
        "limits": plan.limits,
        "positions": plan.facts.positions,
        "masks": plan.facts.masks,
        "generation": generation,
        "backend": plan.recipe.compile.backend,
        "target": _read(compiled, TARGET),
        "source": Source(model=source.model, revision=source.revision, files=dict(hashes)),
        "recipe": recorded(plan.recipe),
        "tools": {
            "vlmc": __version__,
            **{name: importlib.metadata.version(name) for name in tools},
        },
    }


def _read(made: Artifact, name: str) -> Json:
    """A pass's JSON file; empty where it wrote none."""
    path = made.folder / name
    found: Json = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def plain(value: object) -> object:
    """A draft as JSON values, for a cache key."""
    if isinstance(value, Frozen):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def contents(parts: Sequence[Artifact]) -> dict[str, FileEntry]:
    """The files that ``lay`` will lay, known without laying them."""
    return {
        path: entry
        for part in parts
        for path, entry in part.files.items()
        if path not in _NOT_BUNDLED
    }


def lay(
    folder: Path, parts: Sequence[Artifact], workspace: Workspace, begun: Sequence[Copies]
) -> None:
    """Copies what belongs into a bundle out of the passes' results.

    Args:
        folder: The bundle's folder.
        parts: The results.
        workspace: Where they lie.
        begun: Those that are being copied there already.
    """
    there = {copies.artifact.key: copies for copies in begun}
    for part in parts:
        workspace.materialize(there.get(part.key) or begin_copies(part, folder))
    for path in _NOT_BUNDLED:
        (folder / path).unlink(missing_ok=True)


def lay_trial(folder: Path, parts: Sequence[Artifact]) -> None:
    """As ``lay``, by hard links: for a folder inside the cache that is gone after the pass."""
    for part in parts:
        for path in part.files.keys() - _NOT_BUNDLED:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(part.folder / path, folder / path)


def report_of(passes: Mapping[str, Artifact], folds: Path | None) -> Json:
    """What the build measured; no times, so that equal builds give equal bytes.

    Args:
        passes: Their results by name.
        folds: What the calibration wrote, where there was one.
    """
    simplified, quantized, checked = (passes[n] for n in ("simplify", "quantize", "check"))
    weights = json.loads((quantized.folder / WEIGHTS).read_text(encoding="utf-8"))
    formats: dict[str, dict[str, float]] = {}
    for weight in weights.values():
        kind = formats.setdefault(
            weight["format"], {"tensors": 0, "bytes": 0, "largest-relative-error": 0.0}
        )
        kind["tensors"] += 1
        kind["bytes"] += sum(part["nbytes"] for part in weight["parts"].values())
        error = float(f"{weight['parts']['']['relative_error']:.3g}")
        kind["largest-relative-error"] = max(kind["largest-relative-error"], error)
    return {
        "passes": {
            name: {"bytes": sum(entry.size for entry in made.files.values())}
            for name, made in passes.items()
        },
        "nodes": json.loads((simplified.folder / COUNTS).read_text(encoding="utf-8")),
        "weights": formats,
        **({"calibration": read_facts(folds)} if folds is not None else {}),
        "check": json.loads((checked.folder / FIGURES).read_text(encoding="utf-8")),
    }


def hold_budgets(budgets: Budgets, *, size: int, peak: int, seconds: float) -> None:
    """Fails a build that took more than its recipe allows.

    Args:
        budgets: The recipe's.
        size: Of the bundle, in bytes.
        peak: Most memory the build's process held, in bytes.
        seconds: The build's wall time.

    Raises:
        VlmcError: A budget is exceeded.
    """
    for key, value, limit in (
        ("max-bundle-size", size, budgets.max_bundle_size),
        ("max-build-memory", peak, budgets.max_build_memory),
        ("max-build-seconds", round(seconds), budgets.max_build_seconds),
    ):
        if limit is not None and value > limit:
            raise VlmcError(f"{value:,} is over the budget of {limit:,}", at=f"budgets.{key}")
