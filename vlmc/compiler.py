"""The build: its passes in one straight line. Start reading here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from vlmc.assembly import (
    REPORT,
    contents,
    draft_of,
    hold_budgets,
    lay,
    lay_trial,
    plain,
    report_of,
)
from vlmc.backends import BACKENDS
from vlmc.bundle.manifest import FileEntry
from vlmc.bundle.publish import Draft, find_published, seal, write_bundle
from vlmc.bundle.store import canonical_json
from vlmc.errors import need
from vlmc.passes.answers import read_answers, write_answers
from vlmc.passes.calibrate import calibrate
from vlmc.passes.calibration import digests as question_digests
from vlmc.passes.check import Gates, check
from vlmc.passes.compile import compile_programs
from vlmc.passes.export import export
from vlmc.passes.generation import read_generation
from vlmc.passes.load import load
from vlmc.passes.quantize import Formats, quantize
from vlmc.passes.questions import answer_length
from vlmc.passes.reference import Reference
from vlmc.passes.scaling import FOLDS
from vlmc.passes.simplify import simplify
from vlmc.passes.transform import transform
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.scope import (
    calibration_questions,
    golden_questions,
    graph_specs,
    prompt_of,
    rotary_length,
    stored_ties,
    target_of,
)
from vlmc.sources import check_weights, digests, read_checkpoint
from vlmc.sources import resolve as resolve_source
from vlmc.workspace import Artifact, Event, Record, Workspace
from vlmc.workspace.digests import json_digest

Pass = Literal[
    "load", "transform", "export", "simplify", "quantize", "compile", "reference", "check"
]
PASSES: tuple[Pass, ...] = get_args(Pass)
GRAPHS = ("vision", "language")

# Libraries whose version changes a pass's result; they are part of its cache key.
_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")
_SIMPLIFIERS = ("onnxscript", "onnx-ir", "onnx", "onnxsim")
_RUNTIME = ("onnxruntime", "numpy", "pillow", "tokenizers", "jinja2")
_TOOLS = tuple(sorted({*_EXPORTERS, *_SIMPLIFIERS, *_RUNTIME}))


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
    source = resolve_source(recipe, offline=offline, weights=True)
    checkpoint = read_checkpoint(source.folder)
    plan = resolve(recipe, checkpoint, recipe_at=at, model_at=source.name)
    index = check_weights(source.folder)
    if plan.family.tensors is not None:
        index = plan.family.tensors(index, plan.facts)
    calibration = calibration_questions(plan, sum(ref.nbytes for ref in index.values()))
    shards = [name for name in source.files if name.endswith(".safetensors")]
    # Long work for one core, and so is the export: its answer is asked for after that.
    beside = ThreadPoolExecutor(1)
    hashing = beside.submit(digests, source, shards, cache=cache)
    beside.shutdown(wait=False)
    described = digests(source, [n for n in source.files if n not in shards], cache=cache)
    metadata = json_digest(described)
    tensors = json_digest({n: [ref.dtype, list(ref.shape)] for n, ref in index.items()})
    workspace = Workspace(cache, progress)

    def done(name: Pass) -> bool:
        return PASSES.index(name) >= PASSES.index(until)

    def stopped() -> Build:
        return Build(None, None, workspace.records)

    facts, family = plan.facts, plan.family
    prompt, files = prompt_of(plan, source.folder)
    generation = read_generation(
        checkpoint.config, checkpoint.generation, ends=facts.ends, unused=facts.unused_generation
    )
    for key, value in generation.left_out.items():
        progress(Event("notice", "load", f"{key} {value} of the checkpoint is not followed"))
    loaded = workspace.step(
        "load",
        lambda folder: load(prompt, files, facts.images, generation, folder),
        inputs=[metadata],
        options={
            "images": facts.images.model_dump(mode="json"),
            "prompt": prompt.model_dump(mode="json"),
            "generation": generation.model_dump(mode="json"),
        },
        libraries=["tokenizers"],
        code=["vlmc.passes.load", "vlmc.families.prompts"],
    )
    if done("load"):
        return stopped()

    transformed = workspace.lazy(
        "transform",
        lambda: transform(source.folder, family, facts, index, plan.limits.ctx_len),
        inputs=[metadata, tensors],
        options={
            "family": family.name,
            "ctx-len": rotary_length(checkpoint.config, plan),
            "masks": [mask.model_dump(mode="json") for mask in facts.masks],
            "ties": stored_ties(checkpoint.config, index),
        },
        libraries=["torch", "transformers"],
        code=["vlmc.passes.transform", family.vision.__module__],
    )
    if done("transform"):
        transformed.value()
        return stopped()

    graphs = graph_specs(plan)
    exported = workspace.step(
        "export",
        lambda folder: export(transformed.value(), index, graphs, folder),
        inputs=[transformed],
        options={"graphs": [spec.described() for spec in graphs]},
        libraries=_EXPORTERS,
        code=["vlmc.passes.export"],
    )
    if done("export"):
        return stopped()

    simplified = workspace.step(
        "simplify",
        lambda folder: simplify(_graphs(exported), folder),
        inputs=[exported],
        options={},
        libraries=_SIMPLIFIERS,
        code=["vlmc.passes.simplify"],
    )
    if done("simplify"):
        return stopped()

    weights = hashing.result()

    def oracle() -> Reference:
        images, text = facts.images, prompt.plain_image
        if family.classes is not None:
            family.classes()
        made = Reference(source.folder, index, images, text, family.template, facts.deepstack)
        if family.reference is not None:
            family.reference(made.model)
        return made

    # The oracle's own code is transformers', but for a part that the family makes.
    parts_of = [family.classes.__module__] if family.classes is not None else []
    asked_alike = {
        "images": facts.images.model_dump(mode="json"),
        "plain-image": prompt.plain_image,
        "template": family.template,
        "deepstack": list(facts.deepstack),
    }
    storage = plan.storage
    formats = Formats(
        storage.vision, storage.language, storage.embedding, storage.head, recipe.quantize.block
    )
    calibrated = None
    if calibration:
        forms = formats.calibrated()
        calibrated = workspace.step(
            "calibrate",
            lambda folder: calibrate(
                _graphs(simplified),
                exported.folder,
                index,
                forms,
                formats.block,
                oracle(),
                calibration,
                folder,
            ),
            inputs=[simplified, exported, metadata, json_digest(weights)],
            options={
                "formats": forms,
                "block": formats.block,
                **asked_alike,
                "questions": question_digests(calibration),
            },
            libraries=("numpy", "onnx-ir", "torch", "transformers"),
            code=["vlmc.passes.calibrate", "vlmc.passes.reference", *parts_of],
        )
    folds = calibrated.folder / FOLDS if calibrated else None
    quantized = workspace.step(
        "quantize",
        lambda folder: quantize(
            _graphs(simplified), exported.folder, index, formats, folder, bytes_done, folds
        ),
        inputs=[
            simplified,
            exported,
            json_digest(weights),
            *([calibrated] if calibrated else []),
        ],
        options=asdict(formats),
        libraries=["numpy", "onnx-ir"],
        code=["vlmc.passes.quantize"],
    )
    if done("quantize"):
        return stopped()

    backend = BACKENDS[recipe.compile.backend]
    target = target_of(plan)
    compiled = workspace.step(
        "compile",
        lambda folder: compile_programs(
            _graphs(simplified), quantized.folder, backend, recipe.split, folder, target
        ),
        inputs=[simplified, quantized],
        options={
            "backend": backend.name,
            "split": recipe.split,
            "target": asdict(target) if target else None,
        },
        libraries=["onnx-ir", "onnxruntime"],
        code=["vlmc.passes.compile", "vlmc.backends"],
    )
    if done("compile"):
        return stopped()

    tokens = answer_length(sum(ref.nbytes for ref in index.values()))
    questions = golden_questions(plan, tokens)
    asked = questions if recipe.checks.reference == "auto" else []
    answered = workspace.step(
        "reference",
        lambda folder: (
            write_answers(
                oracle(),
                asked,
                tokens,
                folder,
            )
            if asked
            else None
        ),
        inputs=[metadata, json_digest(weights)],
        options={
            "questions": [question.name for question in asked],
            "tokens": tokens,
            **asked_alike,
        },
        libraries=("torch", "transformers", "tokenizers", "numpy", "pillow"),
        code=["vlmc.passes.answers", "vlmc.passes.reference", *parts_of],
    )
    if done("reference"):
        return stopped()

    parts = (loaded, quantized, compiled)
    draft = draft_of(plan, source, described | weights, loaded, compiled, GRAPHS, _TOOLS)
    exact = {storage.vision, storage.language, storage.head, storage.kv_cache} == {"fp32"}

    def run_check(folder: Path) -> None:
        trial = folder / "trial"
        trial.mkdir()
        lay_trial(trial, parts)
        seal(trial, draft, contents(parts))
        expected = read_answers(answered.folder, asked)
        check(trial, questions, expected, _gates(recipe), tokens=tokens, exact=exact, out=folder)
        shutil.rmtree(trial)

    checked = workspace.step(
        "check",
        run_check,
        inputs=[*parts, answered, json_digest(plain(draft))],
        options={
            "questions": [question.name for question in questions],
            "tokens": tokens,
            "gates": recipe.checks.model_dump(mode="json"),
        },
        libraries=_RUNTIME,
        code=["vlmc.passes.check", "vlmc.runtime.replay"],
    )
    bundled = (*parts, checked)
    report = canonical_json(
        report_of(
            {
                "load": loaded,
                "export": exported,
                "simplify": simplified,
                "quantize": quantized,
                "compile": compiled,
                "check": checked,
            },
            folds,
        )
    )
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

    def fill(folder: Path) -> Draft:
        lay(folder, bundled, workspace)
        place = folder / REPORT
        place.parent.mkdir()
        place.write_bytes(report)
        return draft

    there = find_published(out, recipe.name, draft, listed)
    bundle = there or write_bundle(out, recipe.name, fill, listed)
    return Build(bundle.folder, bundle.manifest.version, workspace.records)


def _need_build_extra() -> None:
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxsim"):
        if importlib.util.find_spec(package) is None:
            raise need(package, "build")


def _graphs(artifact: Artifact) -> dict[str, Path]:
    return {name: artifact.folder / f"{name}.onnx" for name in GRAPHS}


def _gates(recipe: Recipe) -> Gates:
    checks = recipe.checks
    return Gates(checks.max_logit_error, checks.max_feature_error, checks.min_token_agreement)
