"""Choosing the next token: transformers' logits processors, in their order, in numpy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from vlmc.errors import VlmcError
from vlmc.runtime.rules import Floats, Rules, finite


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the default is greedy.

    A ``temperature``, ``top_k``, ``top_p`` or ``min_p`` asks for sampling (with temperature 1
    unless given); ``temperature`` 0 is greedy. Checked when made.

    Attributes:
        temperature: Divides the logits; 0, or 0.001 to 100.
        top_k: Keep the k likeliest tokens; at least 1.
        top_p: Keep the smallest set of tokens with this much probability; above 0, up to 1.
        min_p: Keep tokens with at least this share of the likeliest one's; 0 to 1.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that were
            in the prompt or the answer; above 0, up to 100; 1 is off; None: the checkpoint's.
        seed: Of this request's own generator; drawn from the system when absent.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, low, high, open_below) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, kind=kind, low=low, high=high, above=open_below)
        if self.temperature and self.temperature < _COLDEST:
            raise VlmcError(
                f"{self.temperature!r} is neither 0 (greedy) nor 0.001 to 100", at="temperature"
            )

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        asked = (self.temperature, self.top_k, self.top_p, self.min_p)
        return self.temperature == 0 or all(value is None for value in asked)


_COLDEST = 1e-3  # below, float32 scores overflow
_RANGES: dict[str, tuple[type[int] | type[float], float, float, bool]] = {
    "temperature": (float, 0, 100, False),
    "top_k": (int, 1, 2**31 - 1, False),
    "top_p": (float, 0, 1, True),
    "min_p": (float, 0, 1, False),
    "repetition_penalty": (float, 0, 100, True),
    "seed": (int, 0, 2**63 - 1, False),
}
SAMPLING_NAMES = tuple(entry.name for entry in fields(Sampling))


def suggested_sampling(values: Mapping[str, object]) -> Sampling:
    """What a model's authors suggest, with temperature 1 where they say nothing.

    Args:
        values: ``manifest.generation.suggested``: keys of transformers' generation config.

    Raises:
        VlmcError: A value is out of its range.
    """
    known = {name: values.get(name) for name in SAMPLING_NAMES if name != "seed"}
    if known["top_k"] == 0:  # transformers' way to say: off
        known["top_k"] = None
    if known["temperature"] is None:
        known["temperature"] = 1.0
    try:
        return Sampling(**known)  # type: ignore[arg-type]
    except VlmcError as error:
        raise error.located("manifest.json: generation.suggested") from error


def check_number(
    name: str,
    value: object,
    *,
    kind: type[int] | type[float],
    low: float,
    high: float,
    above: bool = False,
) -> None:
    """Refuses a number of the wrong kind or outside ``low..high``; a bool is no number.

    Raises:
        VlmcError: It is not a finite number of that kind, or outside (``above``: or at ``low``).
    """
    kinds = (int,) if kind is int else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool)
    inside = number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type,operator]
    if not inside or (above and value == low):
        word = "a whole number" if kind is int else "a number"
        span = f"above {low} and at most {high}" if above else f"from {low} to {high}"
        raise VlmcError(f"{value!r} is not {word} {span}", at=name)


class Sampler:
    """Chooses the tokens of one request.

    Args:
        sampling: The request's choice.
        rules: The checkpoint's, with the request's repetition penalty.
    """

    def __init__(self, sampling: Sampling, rules: Rules | None = None) -> None:
        self.sampling = sampling
        self.rules = Rules(penalty=sampling.repetition_penalty) if rules is None else rules
        self._plain = sampling.greedy and self.rules.idle
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Floats) -> int:
        """The next token id, from logits [V] (any float dtype; not changed).

        Raises:
            VlmcError: A logit is NaN or infinite (minus infinity is a token ruled out).
        """
        top = int(logits.argmax())  # the first NaN, where there is one
        if not logits.item(top) < math.inf:
            raise VlmcError(
                "the program's logits are not numbers",
                at="logits",
                hint="run `vlmc verify`; a half-precision overflow needs another 'precision'",
            )
        if self._plain:
            return top
        scores = processed(logits, self.sampling, self.rules)
        kept = np.flatnonzero(np.isfinite(scores))
        if self.sampling.greedy or not kept.size:
            token = int(np.argmax(scores))
        else:
            token = int(self._random.choice(kept, p=softmax(scores[kept].astype(np.float64))))
        self.rules.push(token)
        return token


def processed(logits: Floats, sampling: Sampling, rules: Rules) -> Floats:
    """Scores float32 [V] after every processor asked for; removed tokens are -inf.

    Mirrors, after the rules, transformers' TemperatureLogitsWarper, TopKLogitsWarper,
    TopPLogitsWarper and MinPLogitsWarper, in the order of ``generate``.
    """
    with np.errstate(over="ignore"):  # see finite
        scores = rules.apply(logits.astype(np.float32))
        if sampling.greedy or not np.isfinite(scores).any():
            return scores
        return _warped(scores, sampling)


def _warped(scores: Floats, sampling: Sampling) -> Floats:
    if sampling.temperature is not None:
        scores = finite(scores / np.float32(sampling.temperature))
    if sampling.top_k is not None and sampling.top_k < scores.size:
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < least] = -np.inf
    if sampling.top_p is not None and sampling.top_p < 1:
        _keep_top_p(scores, sampling.top_p)
    if sampling.min_p is not None:
        probabilities = softmax(scores)
        floor = np.float32(sampling.min_p) * probabilities.max()
        scores[probabilities < floor] = -np.inf
    return scores


def _keep_top_p(scores: Floats, top_p: float) -> None:
    kept = np.flatnonzero(np.isfinite(scores))
    rising = kept[np.argsort(scores[kept], kind="stable")]
    removed = np.cumsum(softmax(scores[rising])) <= np.float32(1 - top_p)
    removed[-1] = False
    scores[rising[removed]] = -np.inf


def softmax(scores: Floats) -> Floats:
    """Probabilities of scores [N], in their dtype; -inf counts as 0."""
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())
