"""How a build asks transformers itself: for answers to compare with, and for calibration."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

from vlmc.job import Graphs, Job
from vlmc.passes.answers import Expected, askings
from vlmc.passes.calibrate import Observed, calibrate, observe
from vlmc.passes.calibration import digests as question_digests
from vlmc.passes.quantize import Formats
from vlmc.passes.questions import Question, answer_length
from vlmc.passes.reference import Reference
from vlmc.schema import Json
from vlmc.scope import golden_questions
from vlmc.workspace import Artifact
from vlmc.workspace.early import begun_early


def transformers_of(job: Job) -> Reference:
    """The library itself over the same checkpoint, its weights streamed."""
    facts, family = job.plan.facts, job.plan.family
    made = Reference(
        job.source.folder,
        job.index,
        facts.images,
        job.prompt.plain_image,
        family.template,
        facts.deepstack,
        family.timm_tower,
        family.part,
    )
    if family.reference is not None:
        family.reference(made.model)
    return made


def transformers_code(job: Job) -> list[str]:
    """Modules that decide how it is run."""
    tower = job.plan.family.timm_tower
    return ["vlmc.passes.reference", *([tower.__module__] if tower is not None else [])]


def asked_alike(job: Job) -> Json:
    """What steers transformers' answers, as options of a pass."""
    facts, family = job.plan.facts, job.plan.family
    return {
        "images": facts.images.model_dump(mode="json"),
        "plain-image": job.prompt.plain_image,
        "template": family.template,
        "deepstack": list(facts.deepstack),
        "part": family.part,
    }


def answer_tokens(job: Job) -> int:
    """How many tokens of each golden question's answer are compared."""
    return answer_length(sum(ref.nbytes for ref in job.index.values()))


def compared(job: Job) -> list[Question]:
    """The golden questions that transformers is asked too; none where the recipe says so."""
    wanted = job.plan.recipe.checks.reference == "auto"
    return golden_questions(job.plan, answer_tokens(job)) if wanted else []


def answering(job: Job) -> dict[str, Any]:
    """The pass of transformers' answers, as the cache knows it: arguments of ``step``."""
    return {
        "name": "reference",
        "inputs": [job.metadata, job.shards],
        "options": {
            "questions": [question.name for question in compared(job)],
            "tokens": answer_tokens(job),
            **asked_alike(job),
        },
        "libraries": ("torch", "transformers", "tokenizers", "numpy", "pillow"),
        "code": ["vlmc.passes.answers", *transformers_code(job)],
    }


def calibrated_by(
    job: Job, graphs: Graphs, formats: Formats, *, early: bool
) -> tuple[Artifact, list[Expected]]:
    """The factors that transformers' answers led to.

    Args:
        job: The build.
        graphs: What has the weights that get them.
        formats: Of these weights.
        early: Shards are still hashed, and transformers is asked now: it need not wait for that.

    Returns:
        The pass, and what the golden questions were answered meanwhile; nothing where it was known.
    """
    exported, forms = graphs.exported.folder, formats.calibrated()
    answers: list[Expected] = []
    begun: list[Callable[[], Observed]] = []

    def observed(unwanted: Event | None = None) -> Observed:
        # The weights of a large checkpoint are read once for all that is asked. While they are
        # hashed, it is not known what is known.
        known = job.hashing.done() and job.workspace.holds(**answering(job))
        beside = compared(job) if job.reaches("reference") and not known else []
        return observe(
            graphs.files,
            exported,
            forms,
            transformers_of(job),
            job.calibration,
            askings(beside, answer_tokens(job)),
            unwanted,
        )

    def run(folder: Path) -> None:
        found = begun.pop()() if begun else observed()
        answers[:] = found.answers
        calibrate(found, exported, job.index, formats.block, folder)

    with ExitStack() as held:
        if early:
            begun.append(held.enter_context(begun_early(observed)))
            held.callback(begun.clear)
        calibrated = job.workspace.step(
            "calibrate",
            run,
            inputs=[graphs.simplified, graphs.exported, job.metadata, job.shards],
            options={
                "formats": forms,
                "block": formats.block,
                **asked_alike(job),
                "questions": question_digests(job.calibration),
            },
            libraries=("numpy", "onnx-ir", "torch", "transformers"),
            code=["vlmc.passes.calibrate", *transformers_code(job)],
        )
    return calibrated, answers
