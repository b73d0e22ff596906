"""What each pass is asked to do, worked out from the plan and the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlmc.backends.threads import default_threads
from vlmc.bundle.manifest import PromptSpec
from vlmc.families.prompts import read_prompt
from vlmc.machine import cpu_name
from vlmc.passes.calibration import Asked, built_in, read_calibration
from vlmc.passes.checkpoint import TensorRef
from vlmc.passes.compile import Target
from vlmc.passes.export import GraphSpec
from vlmc.passes.parameters import same_values
from vlmc.passes.questions import QUESTIONS, Question
from vlmc.passes.transform import LENGTH_DEPENDENT_ROPE
from vlmc.plan import Plan, image_features, language_interface
from vlmc.schema import Json

# Sizes of a bias's free dimensions while tracing start here: unlike any other.
_BIAS_SIZES = 70
# Room a golden question's words and template are given, in tokens.
_WORDS = 96


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


def prompt_of(plan: Plan, folder: Path) -> tuple[PromptSpec, dict[str, bytes]]:
    """How the model is asked, and the files that say so: see ``read_prompt``."""
    facts, family = plan.facts, plan.family
    return read_prompt(
        folder,
        family.image_token,
        facts.image_token_id,
        facts.token_ids or facts.text.vocab,
        plain_image=family.plain_image,
        image_layout=facts.image_layout,
        opening=facts.opening,
        opening_once=facts.opening_once,
        closing=facts.closing,
        default_template=family.template,
        image_frame=family.image_frame,
        frame=family.frame,
        ahead=family.ahead,
        add_special_tokens=family.special_tokens,
        extra_tokens=family.extra_tokens,
        mark_token_ids=facts.mark_token_ids,
        beside_tokens=facts.beside_tokens,
        leading_images=family.leading_images,
        leading_text=family.leading_text,
        numbered_after=family.numbered_after,
        vision_text=facts.vision_text,
    )


def target_of(plan: Plan) -> Target | None:
    """This machine, where the recipe wants kernels chosen for it."""
    wanted, limits = plan.recipe.compile, plan.limits
    if wanted.target == "any":
        return None
    tokens = {1, limits.batch_size, min(16, limits.prefill_seq_len), limits.prefill_seq_len}
    return Target(cpu_name(), wanted.threads or default_threads(), tuple(sorted(tokens)))


def rotary_length(config: Json, plan: Plan) -> int | None:
    """ctx-len where the rotary embedding depends on it: only then does it change the export."""
    text = config.get("text_config")
    holder = text if isinstance(text, dict) else config
    rotary = holder.get("rope_parameters") or holder.get("rope_scaling")
    kind = (rotary.get("rope_type") or rotary.get("type")) if isinstance(rotary, dict) else None
    return plan.limits.ctx_len if kind in LENGTH_DEPENDENT_ROPE else None


def stored_ties(config: Json, index: Mapping[str, TensorRef]) -> list[tuple[str, str]] | None:
    """Stored heads and the tables they equal; None where the configuration ties nothing.

    A head that is said to be the embedding may be stored, and differ: values decide then what is
    exported.
    """
    text = config.get("text_config")
    holders = [config, *([text] if isinstance(text, dict) else [])]
    if all(holder.get("tie_word_embeddings") is False for holder in holders):
        return None
    heads = [name for name in sorted(index) if name.endswith("lm_head.weight")]
    return [
        (head, name)
        for head in heads
        for name in sorted(index)
        if name != head and same_values(index[head], index[name])
    ]


def calibration_questions(plan: Plan, checkpoint_bytes: int) -> tuple[Asked, ...]:
    """The questions to calibrate with; none where no weight would gain, or the recipe says so."""
    quantize = plan.recipe.quantize
    if quantize.questions is not None:
        asked = read_calibration(quantize.questions)
    elif quantize.calibration == "auto" and plan.recipe.checks.reference == "auto":
        # Some models take no text alone; and pictures may not fit.
        takes = {bool(question.sizes) for question in golden_questions(plan, 1)}
        asked = tuple(a for a in built_in(checkpoint_bytes) if bool(a.pictures) in takes)
    else:
        asked = ()
    return asked if _gains_by_calibrating(plan) else ()


def calibration_is_left_out(plan: Plan) -> bool:
    """Whether weights would gain by calibrating, and only ``checks.reference`` is against it."""
    quantize = plan.recipe.quantize
    return (
        quantize.questions is None
        and quantize.calibration == "auto"
        and plan.recipe.checks.reference == "off"
        and _gains_by_calibrating(plan)
    )


def _gains_by_calibrating(plan: Plan) -> bool:
    return bool({plan.storage.vision, plan.storage.language} & {"int8", "int4"})


def golden_questions(plan: Plan, answer: int) -> list[Question]:
    """The golden questions that fit: every picture's tokens, and room for words and answer."""
    fitting = []
    for question in QUESTIONS:
        if not question.sizes and (plan.family.frame is not None or plan.family.leading_images):
            continue
        tokens = sum(plan.image_tokens(height, width) for width, height in question.sizes)
        if len(question.sizes) <= plan.limits.max_images and (
            tokens + _WORDS + answer <= plan.limits.ctx_len
        ):
            fitting.append(question)
    return fitting
