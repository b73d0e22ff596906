"""The build: seven passes in one straight line. Start reading here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import time
from collections.abc import Callable, Mapping
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
from vlmc.families.prompts import read_prompt
from vlmc.passes.check import Gates, check
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.compile import compile_programs
from vlmc.passes.export import GraphSpec, export
from vlmc.passes.load import load, read_generation
from vlmc.passes.quantize import Formats, quantize
from vlmc.passes.questions import QUESTIONS, Question, answer_length
from vlmc.passes.reference import Reference
from vlmc.passes.simplify import simplify
from vlmc.passes.transform import LENGTH_DEPENDENT_ROPE, transform
from vlmc.plan import Plan, image_features, language_interface, resolve
from vlmc.recipe import Recipe
from vlmc.schema import Json
from vlmc.sources import check_weights, digests, read_checkpoint
from vlmc.sources import resolve as resolve_source
from vlmc.workspace import Artifact, Event, Record, Workspace
from vlmc.workspace.digests import json_digest

Pass = Literal["load", "transform", "export", "simplify", "quantize", "compile", "check"]
PASSES: tuple[Pass, ...] = get_args(Pass)
GRAPHS = ("vision", "language")

# Libraries whose version changes a pass's result; they are part of its cache key.
_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")
_SIMPLIFIERS = ("onnxscript", "onnx-ir", "onnx", "onnxsim")
_RUNTIME = ("onnxruntime", "numpy", "pillow", "tokenizers", "jinja2")
_TOOLS = tuple(sorted({*_EXPORTERS, *_SIMPLIFIERS, *_RUNTIME}))
# Sizes of a bias's free dimensions while tracing start here: unlike any other.
_BIAS_SIZES = 70
# Room a golden question's words and template are given, in tokens.
_WORDS = 96


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
    hashes = digests(source, cache=cache)
    metadata = json_digest({n: d for n, d in hashes.items() if not n.endswith(".safetensors")})
    weights = {n: d for n, d in hashes.items() if n.endswith(".safetensors")}
    tensors = json_digest({n: [ref.dtype, list(ref.shape)] for n, ref in index.items()})
    workspace = Workspace(cache, progress)

    def done(name: Pass) -> bool:
        return PASSES.index(name) >= PASSES.index(until)

    def stopped() -> Build:
        return Build(None, None, workspace.records)

    facts, family = plan.facts, plan.family
    prompt, files = read_prompt(
        source.folder,
        None,
        facts.image_token_id,
        facts.text.vocab,
        plain_image=family.plain_image,
        image_layout=facts.image_layout,
        opening=facts.opening,
        image_frame=family.image_frame,
        frame=family.frame,
        extra_tokens=family.extra_tokens,
    )
    generation = read_generation(checkpoint.config, checkpoint.generation)
    loaded = workspace.step(
        "load",
        lambda folder: load(prompt, files, facts.images, generation, folder),
        inputs=[metadata],
        options={
            "images": facts.images.model_dump(mode="json"),
            "prompt": prompt.model_dump(mode="json"),
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
            "ctx-len": _rotary_length(checkpoint.config, plan),
            "masks": [mask.model_dump(mode="json") for mask in facts.masks],
            "ties": json_digest(weights) if _tie_is_in_doubt(checkpoint.config, index) else None,
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

    storage = plan.storage
    formats = Formats(
        storage.vision, storage.language, storage.embedding, storage.head, recipe.quantize.block
    )
    quantized = workspace.step(
        "quantize",
        lambda folder: quantize(
            _graphs(simplified), exported.folder, index, formats, folder, bytes_done
        ),
        inputs=[simplified, exported, json_digest(weights)],
        options=asdict(formats),
        libraries=["numpy", "onnx-ir"],
        code=["vlmc.passes.quantize"],
    )
    if done("quantize"):
        return stopped()

    backend = BACKENDS[recipe.compile.backend]
    compiled = workspace.step(
        "compile",
        lambda folder: compile_programs(
            _graphs(simplified), quantized.folder, backend, recipe.split, folder
        ),
        inputs=[simplified, quantized],
        options={"backend": backend.name, "split": recipe.split},
        libraries=["onnx-ir", "onnxruntime"],
        code=["vlmc.passes.compile", "vlmc.backends"],
    )
    if done("compile"):
        return stopped()

    parts = (loaded, quantized, compiled)
    draft = draft_of(plan, source, hashes, loaded, GRAPHS, _TOOLS)
    tokens = answer_length(sum(ref.nbytes for ref in index.values()))
    questions = _questions(plan, tokens)
    exact = {storage.vision, storage.language, storage.head, storage.kv_cache} == {"fp32"}
    compare = recipe.checks.reference == "auto"

    def run_check(folder: Path) -> None:
        trial = folder / "trial"
        trial.mkdir()
        lay_trial(trial, parts)
        seal(trial, draft)
        reference = (
            Reference(source.folder, index, facts.images, prompt.plain_image) if compare else None
        )
        check(trial, questions, reference, _gates(recipe), tokens=tokens, exact=exact, out=folder)
        shutil.rmtree(trial)

    checked = workspace.step(
        "check",
        run_check,
        inputs=[*parts, json_digest(plain(draft)), json_digest(weights)],
        options={
            "questions": [question.name for question in questions],
            "tokens": tokens,
            "gates": recipe.checks.model_dump(mode="json"),
            "compare": compare,
        },
        libraries=(*_RUNTIME, "torch", "transformers"),
        code=["vlmc.passes.check", "vlmc.passes.reference", "vlmc.runtime.replay"],
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
            }
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
    bundle = there or write_bundle(out, recipe.name, fill)
    return Build(bundle.folder, bundle.manifest.version, workspace.records)


def graph_specs(plan: Plan) -> tuple[GraphSpec, GraphSpec]:
    """The neutral graphs to export; they depend on the model alone, not on lengths or split."""
    facts = plan.facts
    vision = GraphSpec(
        "vision",
        facts.vision_inputs,
        image_features(facts),
        plan.family.example,
        facts.multiples,
    )
    inputs, outputs = language_interface(facts, "ctx", plan.storage)
    biases = {mask.input for mask in facts.masks}
    free = [d for t in inputs if t.name in biases for d in t.shape if isinstance(d, str)]
    sizes = {
        name: _BIAS_SIZES + at for at, name in enumerate(dict.fromkeys(free)) if name != "batch"
    }
    return vision, GraphSpec("language", inputs, outputs, sizes)


def _need_build_extra() -> None:
    for package in ("torch", "transformers", "onnx", "onnxscript", "onnxsim"):
        if importlib.util.find_spec(package) is None:
            raise need(package, "build")


def _rotary_length(config: Json, plan: Plan) -> int | None:
    """ctx-len where the rotary embedding depends on it: only then does it change the export."""
    text = config.get("text_config")
    holder = text if isinstance(text, dict) else config
    rotary = holder.get("rope_parameters") or holder.get("rope_scaling")
    kind = (rotary.get("rope_type") or rotary.get("type")) if isinstance(rotary, dict) else None
    return plan.limits.ctx_len if kind in LENGTH_DEPENDENT_ROPE else None


def _tie_is_in_doubt(config: Json, index: Mapping[str, TensorRef]) -> bool:
    """Whether a stored head may differ from the embedding it is said to be: values decide then."""
    text = config.get("text_config")
    holders = [config, *([text] if isinstance(text, dict) else [])]
    untied = all(holder.get("tie_word_embeddings") is False for holder in holders)
    return not untied and any(name.endswith("lm_head.weight") for name in index)


def _graphs(artifact: Artifact) -> dict[str, Path]:
    return {name: artifact.folder / f"{name}.onnx" for name in GRAPHS}


def _gates(recipe: Recipe) -> Gates:
    checks = recipe.checks
    return Gates(checks.max_logit_error, checks.max_feature_error, checks.min_token_agreement)


def _questions(plan: Plan, answer: int) -> list[Question]:
    """The golden questions that fit: every picture's tokens, and room for words and answer."""
    fitting = []
    for question in QUESTIONS:
        if plan.family.frame is not None and not question.sizes:
            continue
        tokens = sum(plan.image_tokens(height, width) for width, height in question.sizes)
        if len(question.sizes) <= plan.limits.max_images and (
            tokens + _WORDS + answer <= plan.limits.ctx_len
        ):
            fitting.append(question)
    return fitting
