"""check: the finished bundle, run by the shipped runtime, against transformers; then goldens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.bundle.goldens import (
    Case,
    FeatureSample,
    certain_tokens,
    digest_of,
    top_logits,
    write_goldens,
)
from vlmc.bundle.store import canonical_json
from vlmc.errors import VlmcError
from vlmc.passes.answers import Expected
from vlmc.passes.ask import Found, ask
from vlmc.passes.questions import Question, messages_of, picture

FIGURES = "figures.json"
# What a bundle in float32 must reach whatever the recipe says; measured errors are near 1e-6.
EXACT = 1e-3
# Goldens on another machine: other kernels round differently, most of all on 8-bit activations.
_TOLERANCE_EXACT = 1e-3
_TOLERANCE_QUANTIZED = 5e-2
# Between the two kinds of programs where nobody knows what quantizing moves: a fault of a kernel
# gives other numbers altogether.
_UNCOMPARED = (0.5, 0.5)
_FEATURE_ROWS = 4
# Logits below are those of tokens that are never answered.
_RULED_OUT = -1e38


@dataclass(frozen=True)
class Gates:
    """Largest errors, relative to the range of the expected values; None: reported only."""

    max_logit_error: float | None
    max_feature_error: float | None
    min_token_agreement: float | None


@dataclass(frozen=True)
class Figures:
    """One question's figures; errors are relative to the range of the expected values."""

    question: str
    prompt_tokens: int
    feature_error: float | None
    logit_error: float
    token_agreement: float


def check(
    bundle: Path,
    questions: Sequence[Question],
    expected: Mapping[str, Expected],
    gates: Gates,
    *,
    tokens: int,
    exact: bool,
    out: Path,
) -> None:
    """Runs the questions, compares, and writes ``goldens/`` and ``figures.json`` to ``out``.

    Args:
        bundle: A sealed bundle folder, without goldens.
        questions: Those that fit its limits.
        expected: What transformers answers, by question; one that is not there is not compared.
        gates: What the recipe demands.
        tokens: How many of each answer to compare.
        exact: Everything is float32, so the bundle must agree with transformers.
        out: The pass's folder.

    Raises:
        VlmcError: A gate is missed, the prompts differ, or the bundle answers no numbers.
    """
    pictures = {q.name: [picture(size) for size in q.sizes] for q in questions}
    forced = {name: answer.token_ids for name, answer in expected.items()}
    found, fast = ask(bundle, questions, pictures, forced, tokens)
    figures = {
        q.name: _compare(q, found[q.name], expected[q.name])
        for q in questions
        if q.name in expected
    }
    apart = {name: _apart(answer, found[name]) for name, answer in fast.items()}
    allowed = _tolerances(figures.values(), exact=exact)
    for q in questions:
        if q.name in fast:
            _hold_kernels(q, apart[q.name], allowed if figures or exact else _UNCOMPARED)
            if q.name in expected:
                _hold(_compare(q, fast[q.name], expected[q.name]), gates, exact=exact)
    for figure in figures.values():
        _hold(figure, gates, exact=exact)
    _goldens(questions, pictures, found, allowed, confirmed=exact and bool(figures), out=out)
    described = [asdict(figure) for figure in figures.values()]
    (out / FIGURES).write_bytes(canonical_json({"questions": described}))


def _tolerances(figures: Collection[Figures], *, exact: bool) -> tuple[float, float]:
    """How far logits and features may be off on another machine, of the range of their values.

    Where quantizing moves them further from transformers, as in small models, other roundings may
    move them as far: near a tie, say, a token goes to another expert.
    """
    if exact:
        return _TOLERANCE_EXACT, _TOLERANCE_EXACT
    logits = [figure.logit_error for figure in figures]
    features = [figure.feature_error or 0.0 for figure in figures]
    return max([_TOLERANCE_QUANTIZED, *logits]), max([_TOLERANCE_QUANTIZED, *features])


def _apart(fast: Found, portable: Found) -> tuple[float, float]:
    """Between the two kinds of programs: errors of logits after the prompt, and of features.

    Later rows of logits may follow other tokens.
    """
    features = [name for name in portable if name.startswith("features_")]
    return (
        _error(fast["logits"][0], portable["logits"][0]),
        max((_error(fast[name], portable[name]) for name in features), default=0.0),
    )


def _hold_kernels(
    question: Question, apart: tuple[float, float], allowed: tuple[float, float]
) -> None:
    """The two kinds of programs must agree as a golden demands of another machine."""
    for error, most in zip(apart, allowed, strict=True):
        if error > most:
            raise VlmcError(
                f"the programs for vlmc's kernels differ by {error:.1e} from the portable ones on "
                f"question '{question.name}', allowed {most:.1e}",
                at="check",
                hint="VLMC_KERNELS=off builds without them; please report this",
            )


def _compare(question: Question, found: Found, expected: Expected) -> Figures:
    prompt = found["prompt_token_ids"].tolist()
    if prompt != expected.prompt_token_ids:
        raise VlmcError(
            f"the prompt of question '{question.name}' has other token ids than transformers' "
            f"processor gives: {prompt[:12]}... and {expected.prompt_token_ids[:12]}...",
            at="check",
        )
    errors = [
        _error(found[f"features_{at}"], features) for at, features in enumerate(expected.features)
    ]
    logits = found["logits"]
    agreement = float((logits.argmax(-1) == np.array(expected.token_ids)).mean())
    return Figures(
        question=question.name,
        prompt_tokens=len(prompt),
        feature_error=max(errors) if errors else None,
        logit_error=_error(logits, expected.logits),
        token_agreement=agreement,
    )


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the range of the expected values, to two digits.

    Tokens that a model rules out have the lowest number there is as their logit: it must be
    found again, and is no part of the range.
    """
    if found.shape != expected.shape:
        raise VlmcError(f"{list(found.shape)} values where transformers has {list(expected.shape)}")
    kept = expected > _RULED_OUT
    if not kept.all():
        if (found[~kept] > _RULED_OUT).any():
            raise VlmcError("tokens that transformers rules out have logits", at="check")
        found, expected = found[kept], expected[kept]
    span = float(expected.max() - expected.min()) or 1.0
    return float(f"{float(np.abs(found - expected).max()) / span:.1e}")


def _hold(figures: Figures, gates: Gates, *, exact: bool) -> None:
    logit = gates.max_logit_error or (EXACT if exact else None)
    feature = gates.max_feature_error or (EXACT if exact else None)
    for key, value, limit in (
        ("max-logit-error", figures.logit_error, logit),
        ("max-feature-error", figures.feature_error, feature),
    ):
        if value is not None and limit is not None and not value <= limit:
            raise VlmcError(
                f"error {value:.1e} against transformers on question '{figures.question}', "
                f"allowed {limit:.1e}",
                at=f"checks.{key}",
            )
    least = gates.min_token_agreement
    if least is not None and figures.token_agreement < least:
        raise VlmcError(
            f"{figures.token_agreement:.0%} of the tokens of question '{figures.question}' agree "
            f"with transformers, {least:.0%} are wanted",
            at="checks.min-token-agreement",
        )


def _goldens(
    questions: Sequence[Question],
    pictures: Mapping[str, Sequence[bytes]],
    found: Mapping[str, Found],
    allowed: tuple[float, float],
    *,
    confirmed: bool,
    out: Path,
) -> None:
    cases: list[Case] = []
    files: dict[str, bytes] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for q in questions:
        answer = found[q.name]
        by = "this bundle at build" if answer["portable"] else "this bundle's kernels at build"
        if confirmed:
            by += ", confirmed by transformers fp32"
        names = [f"goldens/{q.name}-{at}.png" for at in range(len(q.sizes))]
        files.update(zip(names, pictures[q.name], strict=True))
        samples = []
        for at in range(len(q.sizes)):
            features = answer[f"features_{at}"]
            rows = np.linspace(0, len(features) - 1, min(_FEATURE_ROWS, len(features))).astype(int)
            file = f"goldens/{q.name}-{at}.npy"
            arrays[file] = features[rows].astype(np.float32)
            samples.append(
                FeatureSample(
                    rows=tuple(rows.tolist()),
                    file=file,
                    tolerance=_span(features) * allowed[1],
                )
            )
        logits = answer["own_logits"]
        off = _span(logits) * allowed[0]
        tokens = answer["token_ids"].tolist()
        cases.append(
            Case(
                name=q.name,
                computed_by=by,
                messages=messages_of(q),
                images=tuple(names),
                prompt_token_ids=tuple(answer["prompt_token_ids"].tolist()),
                pixels=tuple(_pixels(answer, at) for at in range(len(q.sizes))),
                features=tuple(samples),
                logits=top_logits(logits[0], off),
                token_ids=tuple(tokens),
                certain=certain_tokens(logits, off),
                max_new_tokens=len(tokens),
            )
        )
    write_goldens(out, cases, pictures=files, arrays=arrays)


def _pixels(answer: Found, at: int) -> dict[str, Any]:
    prefix = f"pixels_{at}_"
    return {
        key.removeprefix(prefix): digest_of(value)
        for key, value in sorted(answer.items())
        if key.startswith(prefix)
    }


def _span(values: NDArray[Any]) -> float:
    values = values[values > _RULED_OUT]
    return float(f"{float(values.max() - values.min()):.2g}")
