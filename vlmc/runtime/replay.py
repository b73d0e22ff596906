"""A bundle asked a list of questions in a process of its own: ``python -m vlmc.runtime.replay``.

The check pass runs this, so that what it compares is the shipped runtime, without torch, and its
memory is not the compiler's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vlmc.bundle.store import read_bundle
from vlmc.errors import VlmcError
from vlmc.runtime.engine import Engine
from vlmc.runtime.model import Model

USER_MISTAKE = 2
KERNELS = ".kernels"  # of the files of programs that this machine has kernels for
# A larger bundle is run piece by piece, so that a check takes no more memory than the build.
_WHOLE_BYTES = 512 << 20


def replay(bundle: Path, questions: Path, out: Path) -> None:
    """Answers every question and writes what came out of each stage.

    Args:
        bundle: The bundle's folder.
        questions: JSON: a list of ``{name, messages, images, forced}``; ``images`` are paths,
            ``forced`` the tokens to compare: logits are given for the row each was chosen
            from; null takes the bundle's own greedy ones, ``max_new_tokens`` of them.
        out: A folder; gets ``NAME.npz`` with ``prompt_token_ids``, ``token_ids``, ``logits``
            [forced, V] and ``own_logits`` [own greedy tokens, V], ``features_i`` and
            ``pixels_i_NAME`` for each image: of the portable programs. Where this machine has the
            kernels of the others, and the bundle is small enough to be opened whole,
            ``NAME.kernels.npz`` is what those give.
    """
    opened = read_bundle(bundle)
    size = sum(entry.size for entry in opened.manifest.files.values())
    pieces = size > _WHOLE_BYTES
    asked = json.loads(questions.read_text(encoding="utf-8"))
    model = Model(opened, Engine(opened, portable=True, pieces=pieces), reuse=False)
    for question in asked:
        found = _answer(model, question)
        np.savez(out / f"{question['name']}.npz", **found)
        if question["forced"] is None:
            question["forced"] = found["token_ids"].tolist()
    if pieces or not any(program.kernels for program in opened.manifest.programs.values()):
        return
    model = Model(opened, Engine(opened), reuse=False)
    if model.engine.portable:
        return
    for question in asked:
        np.savez(out / f"{question['name']}{KERNELS}.npz", **_answer(model, question))


def _answer(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    pictures = [Path(path).read_bytes() for path in question["images"]]
    prompt = model.prompt(question["messages"], images=pictures)
    forced = question["forced"]
    logits = None if forced is None else model.logits(prompt, forced[:-1])
    if logits is not None and logits.argmax(-1).tolist() == forced:
        tokens, own = forced, logits  # its own greedy tokens, then: no need to run again
    else:
        tokens = model.generate(
            question["messages"],
            images=pictures,
            max_new_tokens=question["max_new_tokens"],
            ignore_eos=True,
        ).token_ids
        own = model.logits(prompt, tokens[:-1])
    found: dict[str, Any] = {
        "prompt_token_ids": prompt.token_ids,
        "token_ids": np.array(tokens, np.int64),
        "own_logits": own,
        "logits": own if logits is None else logits,
    }
    for at, image in enumerate(prompt.images):
        found[f"features_{at}"] = model.image_features(image)
        for name, tensor in image.tensors.items():
            found[f"pixels_{at}_{name}"] = tensor
    return found


if __name__ == "__main__":
    try:
        replay(*(Path(argument) for argument in sys.argv[1:4]))
    except VlmcError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_MISTAKE)
