"""How a build asks transformers itself: for answers to compare with, and for calibration."""

from __future__ import annotations

from typing import Any

from vlmc.job import Job
from vlmc.passes.questions import Question, answer_length
from vlmc.passes.reference import Reference
from vlmc.schema import Json
from vlmc.scope import golden_questions


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
