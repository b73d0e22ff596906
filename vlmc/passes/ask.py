"""A finished bundle, asked by the shipped runtime: without torch, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.errors import VlmcError
from vlmc.passes.questions import Question, messages_of
from vlmc.runtime.replay import KERNELS

Found = Mapping[str, NDArray[Any]]
# What a check opens it soon gives back: in pages of 4 KiB, the system takes a quarter of the time
# for fresh ones. Linux with glibc gives large ones to a process that asks as it starts.
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"


def ask(
    bundle: Path,
    questions: Sequence[Question],
    pictures: Mapping[str, Sequence[bytes]],
    forced: Mapping[str, list[int]],
    tokens: int,
) -> tuple[dict[str, Found], dict[str, Found]]:
    """Asks a bundle questions in a process of its own.

    Args:
        bundle: A sealed bundle folder.
        questions: What to ask.
        pictures: PNG bytes of each question's pictures, by its name.
        forced: Tokens to give logits for, by question; left out: the bundle's own.
        tokens: Length of its own answers.

    Returns:
        By question, the arrays of ``vlmc.runtime.replay``: of the portable programs, and of those
        for this machine's kernels (empty where it has none, or the bundle is too large for both).

    Raises:
        VlmcError: The bundle does not run, or answers no numbers.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = []
        for q in questions:
            paths = []
            for at, data in enumerate(pictures[q.name]):
                path = folder / f"{q.name}-{at}.png"
                path.write_bytes(data)
                paths.append(str(path))
            asked.append(
                {
                    "name": q.name,
                    "messages": messages_of(q),
                    "images": paths,
                    "forced": forced.get(q.name),
                    "max_new_tokens": tokens,
                }
            )
        (folder / "questions.json").write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-m", "vlmc.runtime.replay"]
        tunables = (os.environ.get(_TUNABLES), _HUGE_PAGES)
        done = subprocess.run(
            [*command, str(bundle), str(folder / "questions.json"), str(folder)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, _TUNABLES: ":".join(filter(None, tunables))},
        )
        if done.returncode:
            raise VlmcError(
                f"the bundle does not run: {done.stderr.strip()}",
                at="check",
                hint="this is a fault of the build, not of the recipe",
            )
        names = [q.name for q in questions]
        portable = _stored(folder, names, "")
        fast = _stored(folder, names, KERNELS)
    for name, answer in (*portable.items(), *fast.items()):
        if not np.isfinite(answer["logits"]).all():
            raise VlmcError(f"the bundle's logits are not finite numbers (question '{name}')")
    return portable, fast


def _stored(folder: Path, names: Sequence[str], suffix: str) -> dict[str, Found]:
    answers: dict[str, Found] = {}
    for name in names:
        path = folder / f"{name}{suffix}.npz"
        if path.is_file() or not suffix:
            with np.load(path, allow_pickle=False) as stored:
                answers[name] = dict(stored)
    return answers
