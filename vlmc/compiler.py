"""The build: its stages in one straight line. Start reading here, then ``vlmc/stages.py``."""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vlmc.assembly import REPORT, contents, hold_budgets, lay, report_of
from vlmc.backends import BACKENDS
from vlmc.bundle.manifest import FileEntry
from vlmc.bundle.publish import begin, find_published, publish, writing
from vlmc.bundle.store import canonical_json
from vlmc.errors import need
from vlmc.job import PASSES, Job, Pass, Stopped
from vlmc.passes.generation import read_generation
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.scope import calibration_is_left_out, calibration_questions, prompt_of
from vlmc.sources import check_weights, digests, read_checkpoint
from vlmc.sources import resolve as resolve_source
from vlmc.sources.apart import hashing_apart
from vlmc.stages import compile_graphs, load_files, lower, prove, store_weights
from vlmc.workspace import Copies, Event, Record, Workspace, begin_copies

__all__ = ["PASSES", "Build", "Pass", "build"]


@dataclass(frozen=True)
class Build:
    """What a build made: the bundle's folder, or None when it stopped at an earlier pass."""

    bundle: Path | None
    version: str | None
    passes: tuple[Record, ...]


def build(
    recipe: Recipe,
    *,
    at: str,
    out: Path,
    cache: Path,
    until: Pass = "check",
    offline: bool = False,
    progress: Callable[[Event], None] = lambda event: None,
    bytes_done: Callable[[int, int], None] | None = None,
) -> Build:
    """Builds a recipe's bundle.

    Args:
        recipe: What to build.
        at: The recipe's file, for errors.
        out: The artifacts folder.
        cache: The cache of passes.
        until: The last pass to run; a bundle is written only after the last of all.
        offline: Use no network.
        progress: Told of every pass.
        bytes_done: Told of the weights pass: bytes done, bytes in all.

    Raises:
        VlmcError: The recipe, the checkpoint or the machine cannot do it, or a gate is missed.
    """
    started = time.perf_counter()
    _need_build_extra()
    # Refuses a switch of the environment that says nothing: now, not after an export.
    BACKENDS[recipe.compile.backend].kernels()
    source = resolve_source(recipe, offline=offline, weights=True)
    checkpoint = read_checkpoint(source.folder)
    plan = resolve(recipe, checkpoint, recipe_at=at, model_at=source.name)
    index = check_weights(source.folder)
    if plan.family.tensors is not None:
        index = plan.family.tensors(index, plan.facts)
    calibration = calibration_questions(plan, sum(ref.nbytes for ref in index.values()))
    # The first one last: it is read first again, and the system may remember it.
    shards = [name for name in source.files if name.endswith(".safetensors")][::-1]
    with ExitStack() as held:
        # Long work, and so is the export for one core: its answer is asked for after that.
        hashing = held.enter_context(hashing_apart(source, shards, cache=cache))
        described = digests(source, [n for n in source.files if n not in shards], cache=cache)
        generation = read_generation(
            checkpoint.config,
            checkpoint.generation,
            ends=plan.facts.ends,
            unused=plan.facts.unused_generation,
        )
        for key, value in generation.left_out.items():
            progress(Event("notice", "load", f"{key} {value} of the checkpoint is not followed"))
        if calibration_is_left_out(plan):
            message = "not calibrated, as checks.reference is off"
            progress(Event("notice", "quantize", message))
        prompt, prompt_files = prompt_of(plan, source.folder)
        workspace = Workspace(cache, progress)
        job = Job(
            plan=plan,
            source=source,
            config=checkpoint.config,
            index=index,
            prompt=prompt,
            prompt_files=prompt_files,
            generation=generation,
            calibration=calibration,
            described=described,
            hashing=hashing,
            workspace=workspace,
            until=until,
        )
        # Nothing is made where bundles are before there is something to lay.
        folder = functools.cache(lambda: held.enter_context(begin(out, recipe.name)))
        begun: list[Copies] = []

        def lay_weights() -> None:
            if folder.cache_info().currsize:  # begun already
                return
            known = workspace.knows(weights.quantized)
            begun.append(begin_copies(weights.quantized, folder(), sound=known))
            held.callback(begun[-1].stop)

        try:
            loaded = load_files(job)
            graphs = lower(job)
            weights = store_weights(job, graphs, bytes_done)
            if job.reaches("check") and not weights.quantized.hit:
                lay_weights()  # the bundle will be a new one
            compiled = compile_graphs(job, graphs, weights)
            draft, checked = prove(job, loaded, weights, compiled, lay_weights)
        except Stopped:
            return Build(None, None, workspace.records)

        bundled = (loaded, weights.quantized, compiled, checked)
        made = {
            "load": loaded,
            "export": graphs.exported,
            "simplify": graphs.simplified,
            "quantize": weights.quantized,
            "compile": compiled,
            "check": checked,
        }
        report = canonical_json(report_of(made, weights.folds))
        listed = {
            **contents(bundled),
            REPORT: FileEntry(sha256=sha256(report).hexdigest(), size=len(report)),
        }
        hold_budgets(
            recipe.budgets,
            size=sum(entry.size for entry in listed.values()),
            peak=max(record.peak for record in workspace.records),
            seconds=time.perf_counter() - started,
        )
        bundle = find_published(out, recipe.name, draft, listed)
        if bundle is None:
            lay(folder(), bundled, workspace, begun)
            place = folder() / REPORT
            with writing(place):
                place.parent.mkdir()
                place.write_bytes(report)
            bundle = publish(folder(), draft, listed)
        return Build(bundle.folder, bundle.manifest.version, workspace.records)


def _need_build_extra() -> None:
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxsim"):
        if importlib.util.find_spec(package) is None:
            raise need(package, "build")
