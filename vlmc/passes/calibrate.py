"""calibrate: the float model asked a few questions; then factors that make its layers lose less.

The model is transformers', its weights streamed as in the check, so neither is ever whole in
memory. Kept of what layers read: sums for each channel, and a few tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlmc.errors import VlmcError
from vlmc.passes.channels import find_folds
from vlmc.passes.checkpoint import TensorRef, read_rows
from vlmc.passes.export import PARAMETERS
from vlmc.passes.scaling import FOLDS, Fold, write_folds
from vlmc.passes.smoothing import Seen, Smoothed, smooth

if TYPE_CHECKING:
    from vlmc.passes.answers import Expected
    from vlmc.passes.calibration import Asked
    from vlmc.passes.reference import Asking, Reference

Array = NDArray[Any]

# Tokens kept of what a layer reads, at most, if all layers' take no more than so many bytes; and
# rows of a matrix that factors are tried on.
_TOKENS, _KEPT_BYTES, _ROWS = 96, 256 << 20, 256
# Tokens that sums in float64 are made of at a time.
_AT_ONCE = 128


@dataclass(frozen=True)
class Observed:
    """What a model was asked, and what came of it.

    Attributes:
        folds: Which factors may move, and the format of the weights that get them.
        seen: By the first of these weights, what its layer read; without layers never called.
        questions: How many there were.
        answers: To what else was asked.
    """

    folds: Sequence[tuple[Fold, str]]
    seen: dict[str, Seen]
    questions: int
    answers: list[Expected]


def observe(
    graphs: Mapping[str, Path],
    exported: Path,
    forms: Mapping[str, str],
    reference: Reference,
    questions: Sequence[Asked],
    beside: Sequence[Asking] = (),
    unwanted: Event | None = None,
) -> Observed:
    """Asks the model, and watches its layers.

    Args:
        graphs: Simplified neutral graphs by name.
        exported: The export pass's folder (``parameters.json``).
        forms: Storage format of the matrices of each graph to calibrate.
        reference: transformers over the checkpoint.
        questions: What it is asked.
        beside: What else to ask while the weights are read.
        unwanted: Ends it soon, once it is set.

    Raises:
        VlmcError: The model's chat template refuses a question.
        UnwantedError: It was ended.
    """
    import onnx_ir as ir

    parameters = _parameters(exported)
    # Tables keep their format; a parameter of two programs is one to its checkpoint.
    kept = {parameters["embedding"], parameters["head"]}
    programs = [set(names) for names in parameters["programs"].values()]
    kept |= set.intersection(*programs) if len(programs) > 1 else set()
    folds = [
        (fold, forms[name])
        for name, path in graphs.items()
        if name in forms
        for fold in find_folds(ir.load(path).graph, kept)
    ]
    wide = sum(4 * fold.columns for fold, _ in folds)
    room = min(_TOKENS, _KEPT_BYTES // max(1, wide)) // len(questions)
    watched = [fold.consumers[0] for fold, _ in folds]
    seen, answers = _watched(reference, watched, questions, max(1, room), beside, unwanted)
    return Observed(folds, seen, len(questions), answers)


def calibrate(
    observed: Observed, exported: Path, index: Mapping[str, TensorRef], block: int, out: Path
) -> None:
    """Writes ``folds.json``: which factors move between which weights.

    Args:
        observed: What the layers read; of no use afterwards, as it is let go piece by piece.
        exported: The export pass's folder (``parameters.json``).
        index: The checkpoint's tensors.
        block: Columns per block, for formats that have blocks.
        out: The folder to write to.
    """
    from vlmc.passes.streamed import workers

    sources: dict[str, str] = _parameters(exported)["sources"]
    seen = observed.seen

    def smoothed(given: tuple[Fold, str]) -> tuple[Fold, Smoothed]:
        fold, form = given
        weights = [_some_rows(index[sources[name]]) for name in fold.consumers]
        return fold, smooth(fold, seen.pop(fold.consumers[0]), weights, form, block)

    heard = [f for f in observed.folds if f[0].consumers[0] in seen]
    found = list(workers().map(smoothed, heard))
    write_folds(
        out / FOLDS,
        [(fold, made.exponents) for fold, made in found if made.exponents.any()],
        {"questions": observed.questions, **_facts([made for _, made in found])},
    )


def _parameters(exported: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exported / PARAMETERS).read_text(encoding="utf-8"))
    return found


class _Watch:
    """What one layer reads during one question; ``room`` tokens are kept as they are."""

    def __init__(self, room: int) -> None:
        self.sums: list[Array] = []
        self.count = 0
        self.kept: list[Array] = []
        self._room = room

    def __call__(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """A hook before the layer's forward; its input is float ``[..., K]``."""
        rows = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1]).numpy()
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            size = np.sqrt(np.square(some, dtype=np.float64).mean(axis=1, keepdims=True))
            heard = size[:, 0] > 0
            self.sums.append((np.abs(some[heard]) / size[heard]).sum(axis=0))
            self.count += int(heard.sum())
        places = np.linspace(0, len(rows) - 1, min(self._room, len(rows))).astype(int)
        self.kept.append(rows[places])
        self._room -= len(places)


class _Heard:
    """All questions together, in their order."""

    def __init__(self) -> None:
        self.level: Any = 0.0
        self.count = 0
        self.kept: list[Array] = []

    def add(self, watch: _Watch) -> None:
        """One more question."""
        for some in watch.sums:
            self.level = self.level + some
        self.count += watch.count
        self.kept += watch.kept

    def seen(self) -> Seen:
        """What ``smooth`` is told."""
        return Seen(self.level / max(1, self.count), np.concatenate(self.kept))


def _watched(
    reference: Reference,
    weights: Sequence[str],
    questions: Sequence[Asked],
    room: int,
    beside: Sequence[Asking],
    unwanted: Event | None,
) -> tuple[dict[str, Seen], list[Expected]]:
    """What the linear layers of these weights read, and the answers to what is asked beside.

    A layer that is never called is left out.
    """
    import torch

    from vlmc.passes.reference import Asking

    modules = dict(reference.model.named_modules())
    paths = {name: name.removesuffix(".weight") for name in weights}
    watched = {n: p for n, p in paths.items() if isinstance(modules.get(p), torch.nn.Linear)}
    watches = [{name: _Watch(room) for name in watched} for _ in questions]
    asked = [
        Asking(
            one.messages,
            one.pictures,
            tokens=1,
            features=False,
            listeners={watched[name]: watch for name, watch in own.items()},
            within=partial(_named, number),
        )
        for number, (one, own) in enumerate(zip(questions, watches, strict=True), start=1)
    ]
    answers = reference.answers([*asked, *beside], unwanted)
    heard = {name: _Heard() for name in watched}
    for own, _ in zip(watches, answers, strict=False):
        for name, watch in own.items():
            heard[name].add(watch)
        own.clear()
    return {name: all_.seen() for name, all_ in heard.items() if all_.count}, list(answers)


@contextmanager
def _named(number: int) -> Iterator[None]:
    """Says which question a chat template refuses."""
    from jinja2 import TemplateError

    try:
        yield
    except TemplateError as error:
        raise VlmcError(
            f"the model's chat template refuses question {number}: {error}",
            at="quantize.calibration",
        ) from error


def _some_rows(ref: TensorRef) -> Array:
    """Rows spread over a matrix: all, or ``_ROWS`` in runs of eight."""
    rows = ref.shape[0]
    if rows <= _ROWS:
        return read_rows(ref, 0, rows)
    starts = np.linspace(0, rows - 8, _ROWS // 8).astype(int)
    return np.concatenate([read_rows(ref, int(at), int(at) + 8) for at in starts])


def _facts(found: Sequence[Smoothed]) -> dict[str, object]:
    """For the report; errors are means over folds, to two digits."""
    moved = [made for made in found if made.exponents.any()]
    largest = max((int(np.abs(made.exponents).max()) for made in moved), default=0)
    return {
        "folds": len(found),
        "folds-used": len(moved),
        "channels": sum(len(made.exponents) for made in found),
        "channels-scaled": sum(int(np.count_nonzero(made.exponents)) for made in moved),
        "largest-factor": 2**largest,
        "layer-error-before": _mean([made.before for made in found]),
        "layer-error-after": _mean([made.after for made in found]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(f"{np.mean(values):.2g}") if values else 0.0
