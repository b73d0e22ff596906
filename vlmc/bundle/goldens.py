"""Golden cases: small fixed questions with the answers a machine must give.

``goldens/cases.json`` lists them; pictures lie beside it as PNG, arrays as ``.npy`` without
pickle. Whoever computed an expectation is named, because "as transformers in fp32" and "as this
bundle when it was built" promise different things.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from vlmc.bundle.store import Bundle, canonical_json
from vlmc.errors import VlmcError
from vlmc.schema import Frozen, Json

FOLDER = "goldens"
CASES = "goldens/cases.json"

Array = NDArray[Any]


class Digest(Frozen):
    """An array known by its bytes: preprocessing must agree to the last bit."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


class FeatureSample(Frozen):
    """Some rows of one image's features: ``file`` holds float32 ``[len(rows), H]``."""

    rows: tuple[int, ...]
    file: str
    tolerance: float  # largest absolute difference allowed


class TopLogits(Frozen):
    """The largest logits after the prompt; token ids with their values."""

    token_ids: tuple[int, ...]
    values: tuple[float, ...]
    tolerance: float


class Case(Frozen):
    """One golden case; an expectation that is None or empty is not checked.

    Attributes:
        name: Unique among the cases; letters, digits, dashes.
        computed_by: "transformers fp32", "this bundle at build", "this bundle's kernels at build".
        messages: The question, image parts without a source.
        images: Files of its pictures in the bundle, in order.
        prompt_token_ids: Placeholders expanded.
        pixels: For each image, the vision program's inputs by name.
        features: For each image, a sample of its features.
        logits: After the prompt.
        token_ids: The greedy tokens, ``max_new_tokens`` of them, end tokens among them.
        certain: How many of ``token_ids`` must agree: from the first near tie on, another
            machine may rightly choose another token.
        max_new_tokens: Asked for when ``token_ids`` was made.
    """

    name: str
    computed_by: str
    messages: list[Json]
    images: tuple[str, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    pixels: tuple[dict[str, Digest], ...] = ()
    features: tuple[FeatureSample, ...] = ()
    logits: TopLogits | None = None
    token_ids: tuple[int, ...] | None = None
    certain: int = 0
    max_new_tokens: int = 16


class Cases(Frozen):
    """``goldens/cases.json``."""

    schema_version: Literal[1] = 1
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Finding:
    """One comparison: what, whether it agrees, and the figures."""

    what: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class CaseResult:
    """What running a case found."""

    name: str
    computed_by: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        return all(finding.ok for finding in self.findings)


class Runner(Protocol):
    """What a case is run on: ``vlmc.runtime.Model``, which this floor cannot name."""

    @property
    def prompt(self) -> Callable[..., Any]:
        """``(messages, images=) -> Prompt``."""

    @property
    def image_features(self) -> Callable[[Any], Array]:
        """``PreparedImage -> [tokens, H]``."""

    @property
    def logits(self) -> Callable[[Any], Array]:
        """``Prompt -> [1, V]``."""

    @property
    def generate(self) -> Callable[..., Any]:
        """``(messages, images=, max_new_tokens=, ignore_eos=) -> Answer``."""


def digest_of(array: Array) -> Digest:
    """The ``Digest`` of an array."""
    data = np.ascontiguousarray(array)
    return Digest(
        dtype=str(data.dtype), shape=data.shape, sha256=hashlib.sha256(data.tobytes()).hexdigest()
    )


def top_logits(logits: Array, tolerance: float, count: int = 32) -> TopLogits:
    """The ``count`` largest of logits [V], ties by the smaller id."""
    best = np.argsort(-logits, kind="stable")[:count]
    values = tuple(float(value) for value in logits[best])
    return TopLogits(token_ids=tuple(best.tolist()), values=values, tolerance=tolerance)


def certain_tokens(logits: Array, tolerance: float) -> int:
    """How many leading greedy tokens are no near tie.

    Args:
        logits: [n, V]: the rows the n tokens were chosen from.
        tolerance: Largest error of a logit; a lead of more than twice that is safe.
    """
    for step, row in enumerate(logits):
        second, first = np.partition(row, -2)[-2:]
        if first - second <= 2 * tolerance:
            return step
    return len(logits)


def write_goldens(
    folder: Path,
    cases: Sequence[Case],
    *,
    pictures: Mapping[str, bytes] | None = None,
    arrays: Mapping[str, Array] | None = None,
) -> None:
    """Lays ``goldens/`` in a bundle that is being written.

    Args:
        folder: The bundle's folder.
        cases: What to write in ``cases.json``; their order is kept.
        pictures: PNG bytes by file name (``goldens/NAME.png``).
        arrays: float32 arrays by file name (``goldens/NAME.npy``).
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    for name, data in (pictures or {}).items():
        (folder / name).write_bytes(data)
    for name, array in (arrays or {}).items():
        # Made in memory: numpy's header is then the same on every system.
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        (folder / name).write_bytes(stream.getvalue())
    listed = Cases(cases=tuple(cases)).model_dump(mode="json")
    (folder / CASES).write_bytes(canonical_json(listed))


def read_cases(bundle: Bundle) -> tuple[Case, ...]:
    """The cases of a bundle; none when it has no goldens.

    Raises:
        VlmcError: ``cases.json`` is broken or names a file the manifest does not list.
    """
    if CASES not in bundle.manifest.files:
        return ()
    try:
        cases = Cases.model_validate_json(bundle.read(CASES)).cases
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VlmcError(first["msg"], at=f"{CASES}: {place}") from error
    for case in cases:
        if max(len(case.pixels), len(case.features)) > len(case.images):
            raise VlmcError(f"case '{case.name}' expects more images than it has", at=CASES)
        for file in (*case.images, *(sample.file for sample in case.features)):
            bundle.path(file)
    return cases


def run_case(runner: Runner, bundle: Bundle, case: Case) -> CaseResult:
    """Asks a case's question again and compares what comes out, stage by stage."""
    pictures = [bundle.read(name) for name in case.images]
    prompt = runner.prompt(case.messages, images=pictures)
    findings = [_same_ids("prompt", case.prompt_token_ids, prompt.token_ids.tolist())]
    for index, expected in enumerate(case.pixels):
        found = {name: digest_of(value) for name, value in prompt.images[index].tensors.items()}
        same = found == expected
        findings.append(Finding(f"pixels {index}", same, "same bits" if same else "differ"))
    for index, sample in enumerate(case.features):
        features = _rows(runner.image_features(prompt.images[index]), sample.rows)
        there = _read_array(bundle, sample.file)
        findings.append(_close(f"features {index}", there, features, sample.tolerance))
    if case.logits is not None:
        values = _rows(runner.logits(prompt)[0], case.logits.token_ids)
        expected_values = np.array(case.logits.values)
        findings.append(_close("logits", expected_values, values, case.logits.tolerance))
    if case.token_ids is not None:
        # As they were made: past the end token, where there is one.
        answer = runner.generate(
            case.messages, images=pictures, max_new_tokens=case.max_new_tokens, ignore_eos=True
        )
        wanted = case.token_ids[: case.certain]
        findings.append(_same_ids("tokens", wanted, list(answer.token_ids[: case.certain])))
    return CaseResult(case.name, case.computed_by, tuple(findings))


def _read_array(bundle: Bundle, name: str) -> Array:
    try:
        return np.asarray(np.load(io.BytesIO(bundle.read(name)), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise VlmcError(f"this is not a plain array: {error}", at=name) from error


def _rows(array: Array, rows: Sequence[int]) -> Array:
    if not all(0 <= row < len(array) for row in rows):
        raise VlmcError(f"a case expects rows {list(rows)} of {len(array)}", at=CASES)
    return array[list(rows)]


def _same_ids(what: str, expected: Sequence[int], found: list[int]) -> Finding:
    if list(expected) == found:
        return Finding(what, True, f"{len(found)} the same")
    pairs = zip(expected, found, strict=False)
    first = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    return Finding(what, False, f"differ from {first} on ({len(expected)} expected, {len(found)})")


def _close(what: str, expected: Array, found: Array, tolerance: float) -> Finding:
    if expected.shape != found.shape:
        return Finding(what, False, f"{list(found.shape)}, expected {list(expected.shape)}")
    error = float(np.max(np.abs(expected.astype(np.float64) - found), initial=0.0))
    # A comparison with NaN is false, as it should be here.
    return Finding(what, error <= tolerance, f"largest error {error:.2g}, allowed {tolerance:.2g}")
