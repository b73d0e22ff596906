"""How a build asks transformers itself: for answers to compare with, and for calibration."""

from __future__ import annotations

from vlmc.job import Job
from vlmc.passes.reference import Reference
from vlmc.schema import Json


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
