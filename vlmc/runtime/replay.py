"""A bundle asked a list of questions in a process of its own: ``python -m vlmc.runtime.replay``.

The check pass runs this, so that what it compares is the shipped runtime, without torch, and its
memory is not the compiler's.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.backends.spec import WHOLE_BYTES
from vlmc.backends.together import Together
from vlmc.bundle.manifest import LogitsSpec
from vlmc.bundle.store import Bundle, read_bundle
from vlmc.errors import VlmcError
from vlmc.runtime.engine import Engine
from vlmc.runtime.model import Model
from vlmc.runtime.types import Array, PreparedImage

USER_MISTAKE = 2
KERNELS = ".kernels"  # of the files of programs that this machine has kernels for
# No golden question has more.
_PICTURES = 2


def replay(bundle: Path, questions: Path, out: Path) -> None:
    """Answers every question and writes what came out of each stage.

    Args:
        bundle: The bundle's folder.
        questions: JSON: a list of ``{name, messages, images, forced}``; ``images`` are paths,
            ``forced`` the tokens to compare: logits are given for the row each was chosen
            from; null takes the bundle's own greedy ones, ``max_new_tokens`` of them.
        out: A folder; gets ``NAME.npz`` with ``prompt_token_ids``, ``token_ids``, ``logits``
            [forced, V] and ``own_logits`` [own greedy tokens, V], ``features_i`` and
            ``pixels_i_NAME`` for each image, and ``portable``, that these are the portable
            programs'. Where this machine has the kernels of the others, ``NAME.kernels.npz`` is
            what those give. Of a large bundle there is ``NAME.npz`` alone, of those others if
            they need no more memory.
    """
    opened = read_bundle(bundle)
    size = sum(entry.size for entry in opened.manifest.files.values())
    pieces = size > WHOLE_BYTES
    asked = json.loads(questions.read_text(encoding="utf-8"))
    answers = _by_little(opened, asked) if pieces else _portable(opened, asked)
    for question, found in zip(asked, answers, strict=True):
        np.savez(out / f"{question['name']}.npz", **found)
        if question["forced"] is None:
            question["forced"] = found["token_ids"].tolist()
    if pieces or not any(program.kernels for program in opened.manifest.programs.values()):
        return
    model = _opened(opened)
    if model.engine.portable:
        return
    for question in asked:
        np.savez(out / f"{question['name']}{KERNELS}.npz", **_answer(model, question))


def _portable(bundle: Bundle, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    model = _opened(bundle, portable=True)
    return [_answer(model, question) for question in asked]


def _by_little(bundle: Bundle, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of programs that hold few weights at a time: all questions go through together.

    The pictures first, so that then all wait for the same program.
    """
    together = Together()
    models = [_opened(bundle, pieces=together) for _ in range(max(1, len(asked)))]
    if not models[0].engine.single:
        models[0].engine.open_vision()  # that it can be opened is known whatever is asked
    encodings = [
        partial(model.image_features, image)
        for model, question in zip(models, asked, strict=False)
        for image in model.prompt(question["messages"], images=_pictures(question)).images
    ]
    together.map(encodings)
    return together.map([partial(_answer, *pair) for pair in zip(models, asked, strict=False)])


def _opened(bundle: Bundle, *, portable: bool = False, pieces: Together | None = None) -> Model:
    # A build's own kernels that do not know its own programs are a fault, not an older machine.
    engine = Engine(bundle, portable=portable, strict=True, pieces=pieces)
    engine.encode = _once(engine.encode)  # type: ignore[method-assign]
    model = Model(bundle, engine, reuse=False)
    model.rules = LogitsSpec()  # what is compared is the program's own choice
    return model


def _answer(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    pictures = _pictures(question)
    prompt = model.prompt(question["messages"], images=pictures)
    forced, wanted = question["forced"], question["max_new_tokens"]
    logits = None if forced is None else model.logits(prompt, forced[:-1])
    known = 0 if logits is None else _own_tokens(logits, forced)
    if logits is not None and known >= wanted:
        own = logits[:wanted]  # its own greedy tokens, then: no need to run again
        tokens = own.argmax(-1).tolist()
    else:
        with _recorded(model.engine) as rows:
            tokens = model.generate(
                question["messages"],
                images=pictures,
                max_new_tokens=wanted,
                ignore_eos=True,
            ).token_ids
        own = np.stack(rows).astype(np.float32)
    found: dict[str, Any] = {
        "prompt_token_ids": prompt.token_ids,
        "token_ids": np.array(tokens, np.int64),
        "own_logits": own,
        "logits": own if logits is None else logits,
        "portable": bool(model.engine.portable) or model.engine.program.kernels is None,
    }
    for at, image in enumerate(prompt.images):
        found[f"features_{at}"] = model.image_features(image)
        for name, tensor in image.tensors.items():
            found[f"pixels_{at}_{name}"] = tensor
    return found


def _pictures(question: dict[str, Any]) -> list[bytes]:
    return [Path(path).read_bytes() for path in question["images"]]


@contextmanager
def _recorded(engine: Engine) -> Iterator[list[Array]]:
    """The logits [V] that the tokens of one answer are chosen from, as it is generated."""
    rows: list[Array] = []
    prefill, decode = engine.prefill, engine.decode

    def last(*given: Any) -> Array:
        rows[:] = [prefill(*given)]  # of the prompt's last chunk
        return rows[0]

    def following(*given: Any) -> Array:
        logits = decode(*given)
        rows.append(logits[0].copy())
        return logits

    engine.prefill = last  # type: ignore[assignment, method-assign]
    engine.decode = following  # type: ignore[assignment, method-assign]
    try:
        yield rows
    finally:
        engine.prefill = prefill  # type: ignore[method-assign]
        engine.decode = decode  # type: ignore[method-assign]


def _own_tokens(logits: NDArray[np.float32], forced: Sequence[int]) -> int:
    """How many rows of logits are those of the bundle's own greedy answer.

    Up to the first token that is not the forced one, and the row of that token itself.
    """
    same = logits.argmax(-1) == np.array(forced)
    return len(forced) if same.all() else int(same.argmin()) + 1


def _once(encode: Callable[..., Array]) -> Callable[..., Array]:
    """The same, with the features of the last few pictures remembered: towers are slow."""
    known: list[tuple[PreparedImage, Array]] = []

    def once(image: PreparedImage, slot: int = 0, place: int = 0) -> Array:
        for there, rows in known:
            if _same(there, image):
                return rows
        known.append((image, encode(image, slot, place)))
        del known[:-_PICTURES]
        return known[-1][1]

    return once


def _same(one: PreparedImage, other: PreparedImage) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        np.array_equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


if __name__ == "__main__":
    try:
        replay(*(Path(argument) for argument in sys.argv[1:4]))
    except VlmcError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_MISTAKE)
