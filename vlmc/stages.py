"""What a build makes: graphs, weights, programs, and the proof that they are right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmc.asking import (
    answer_tokens,
    answering,
    calibrated_by,
    compared,
    transformers_of,
)
from vlmc.assembly import contents, draft_of, lay_trial, plain
from vlmc.backends import BACKENDS
from vlmc.backends.spec import WHOLE_BYTES
from vlmc.bundle.publish import Draft, seal
from vlmc.job import GRAPHS, Graphs, Job
from vlmc.passes.answers import Expected, askings, read_answers, write_answers
from vlmc.passes.check import Gates, check
from vlmc.passes.compile import compile_programs
from vlmc.passes.export import export
from vlmc.passes.garbage import seldom_collected
from vlmc.passes.load import load
from vlmc.passes.quantize import Formats, quantize
from vlmc.passes.scaling import FOLDS
from vlmc.passes.simplify import simplify
from vlmc.passes.transform import transform
from vlmc.scope import (
    golden_questions,
    graph_specs,
    rotary_length,
    stored_ties,
    target_of,
)
from vlmc.workspace import Artifact
from vlmc.workspace.digests import json_digest

# Libraries whose version changes a pass's result; they are part of its cache key.
_EXPORTERS = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")
_SIMPLIFIERS = ("onnxscript", "onnx-ir", "onnx", "onnxsim")
_RUNTIME = ("onnxruntime", "numpy", "pillow", "tokenizers", "jinja2")
TOOLS = tuple(sorted({*_EXPORTERS, *_SIMPLIFIERS, *_RUNTIME}))


@dataclass(frozen=True)
class Weights:
    """The stored weights, the factors that calibration found, and what was answered meanwhile."""

    quantized: Artifact
    folds: Path | None
    answers: Sequence[Expected] = ()


def load_files(job: Job) -> Artifact:
    """What the runtime asks the model with: tokenizer, template, image constants."""
    images, prompt, generation = job.plan.facts.images, job.prompt, job.generation
    loaded = job.workspace.step(
        "load",
        lambda folder: load(prompt, job.prompt_files, images, generation, folder),
        inputs=[job.metadata],
        options={
            "images": images.model_dump(mode="json"),
            "prompt": prompt.model_dump(mode="json"),
            "generation": generation.model_dump(mode="json"),
        },
        libraries=["tokenizers"],
        code=["vlmc.passes.load", "vlmc.families.prompts"],
    )
    job.after("load")
    return loaded


@seldom_collected()
def lower(job: Job) -> Graphs:
    """The modules of transformers as neutral graphs, without weights."""
    plan, workspace = job.plan, job.workspace
    facts, family = plan.facts, plan.family
    tensors = json_digest({n: [ref.dtype, list(ref.shape)] for n, ref in job.index.items()})
    transformed = workspace.lazy(
        "transform",
        lambda: transform(job.source.folder, family, facts, job.index, plan.limits.ctx_len),
        inputs=[job.metadata, tensors],
        options={
            "family": family.name,
            "ctx-len": rotary_length(job.config, plan),
            "masks": [mask.model_dump(mode="json") for mask in facts.masks],
            "ties": stored_ties(job.config, job.index),
        },
        libraries=["torch", "transformers"],
        code=["vlmc.passes.transform", family.vision.__module__],
    )
    if job.until == "transform":
        transformed.value()
    job.after("transform")

    graphs = graph_specs(plan)

    exported = workspace.step(
        "export",
        lambda folder: export(transformed.value(), job.index, graphs, folder),
        inputs=[transformed],
        options={"graphs": [spec.described() for spec in graphs]},
        libraries=_EXPORTERS,
        code=["vlmc.passes.export"],
    )
    job.after("export")
    found = {name: exported.folder / f"{name}.onnx" for name in GRAPHS}
    simplified = workspace.step(
        "simplify",
        lambda folder: simplify(found, folder),
        inputs=[exported],
        options={},
        libraries=_SIMPLIFIERS,
        code=["vlmc.passes.simplify"],
    )
    job.after("simplify")
    return Graphs(exported, simplified)


def store_weights(job: Job, graphs: Graphs, tell: Callable[[int, int], None] | None) -> Weights:
    """The checkpoint's tensors in the recipe's formats, calibrated where that gains anything.

    Args:
        job: The build.
        graphs: Which tensors are read, and how.
        tell: Told of bytes done, and bytes in all.
    """
    storage = job.plan.storage
    block = job.plan.recipe.quantize.block
    formats = Formats(storage.vision, storage.language, storage.embedding, storage.head, block)
    exported = graphs.exported.folder
    waits = not job.hashed
    if waits:
        job.workspace.begins("calibrate" if job.calibration else "quantize")
    calibrated, answers = None, list[Expected]()
    if job.calibration:
        # Where the graphs were cached, so may be what is made from them, as for a new copy.
        early = waits and not graphs.simplified.hit
        calibrated, answers = calibrated_by(job, graphs, formats, early=early)
    folds = calibrated.folder / FOLDS if calibrated else None
    quantized = job.workspace.step(
        "quantize",
        lambda folder: quantize(graphs.files, exported, job.index, formats, folder, tell, folds),
        inputs=[
            graphs.simplified,
            graphs.exported,
            job.shards,
            *([calibrated] if calibrated else []),
        ],
        options=asdict(formats),
        libraries=["numpy", "onnx-ir"],
        code=["vlmc.passes.quantize"],
    )
    job.after("quantize")
    return Weights(quantized, folds, answers)


def compile_graphs(job: Job, graphs: Graphs, weights: Weights) -> Artifact:
    """The backend's programs over the stored weights."""
    recipe = job.plan.recipe
    backend, target = BACKENDS[recipe.compile.backend], target_of(job.plan)
    compiled = job.workspace.step(
        "compile",
        lambda folder: compile_programs(
            graphs.files, weights.quantized.folder, backend, recipe.split, folder, target
        ),
        inputs=[graphs.simplified, weights.quantized],
        options={
            "backend": backend.name,
            "split": recipe.split,
            "target": asdict(target) if target else None,
        },
        libraries=["onnx-ir", "onnxruntime"],
        code=["vlmc.passes.compile", "vlmc.backends"],
    )
    job.after("compile")
    return compiled


def prove(
    job: Job,
    loaded: Artifact,
    weights: Weights,
    compiled: Artifact,
    beside: Callable[[], None],
) -> tuple[Draft, Artifact]:
    """The bundle run on golden questions, and held to transformers' answers; its manifest's fields.

    Args:
        job: The build.
        loaded: What the model is asked with.
        weights: Its weights.
        compiled: Its programs.
        beside: Begins what may go on while the bundle runs; not called if it need not run.

    Raises:
        VlmcError: A gate is missed.
    """
    plan, checks = job.plan, job.plan.recipe.checks
    tokens = answer_tokens(job)
    questions, asked = golden_questions(plan, tokens), compared(job)

    def run_reference(folder: Path) -> None:
        if asked:
            answers = weights.answers or transformers_of(job).answers(askings(asked, tokens))
            write_answers(asked, answers, folder)

    answered = job.workspace.step(fn=run_reference, **answering(job))
    job.after("reference")

    parts = (loaded, weights.quantized, compiled)
    hashes = job.described | job.hashing.result()
    draft = draft_of(plan, job.source, hashes, loaded, compiled, GRAPHS, TOOLS)
    storage = plan.storage
    exact = {storage.vision, storage.language, storage.head, storage.kv_cache} == {"fp32"}
    gates = Gates(checks.max_logit_error, checks.max_feature_error, checks.min_token_agreement)

    def run_check(folder: Path) -> None:
        beside()
        trial = folder / "trial"
        trial.mkdir()
        lay_trial(trial, parts)
        seal(trial, draft, contents(parts))
        expected = read_answers(answered.folder, asked)
        check(trial, questions, expected, gates, tokens=tokens, exact=exact, out=folder)
        shutil.rmtree(trial)

    size = sum(entry.size for part in parts for entry in part.files.values())
    backend = BACKENDS[plan.recipe.compile.backend]
    checked = job.workspace.step(
        "check",
        run_check,
        inputs=[*parts, answered, json_digest(plain(draft))],
        options={
            "questions": [question.name for question in questions],
            "tokens": tokens,
            "gates": checks.model_dump(mode="json"),
            # Those of a large bundle answer instead of the portable programs.
            "kernels": backend.kernels() if size > WHOLE_BYTES else None,
        },
        libraries=_RUNTIME,
        code=["vlmc.passes.check", "vlmc.runtime.replay"],
    )
    return draft, checked
