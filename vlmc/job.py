"""What the passes of a build are made from, and which of them is the last."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vlmc.bundle.manifest import GenerationSpec, PromptSpec
from vlmc.passes.calibration import Asked
from vlmc.passes.checkpoint import TensorRef
from vlmc.plan import Plan
from vlmc.schema import Json
from vlmc.sources import SourceFolder
from vlmc.workspace import Artifact, Workspace
from vlmc.workspace.digests import json_digest

Pass = Literal[
    "load", "transform", "export", "simplify", "quantize", "compile", "reference", "check"
]
PASSES: tuple[Pass, ...] = get_args(Pass)

GRAPHS = ("vision", "language")

_MOMENT = 0.5  # seconds


class Stopped(Exception):  # noqa: N818 - asked for, not an error
    """The last pass that was wanted is done."""


@dataclass(frozen=True)
class Job:
    """What the passes of a build are made from, read once.

    Attributes:
        plan: What is built.
        source: The checkpoint's folder.
        config: Its ``config.json``.
        index: Its tensors.
        prompt: How it is asked.
        prompt_files: The files that say so, by name.
        generation: How its answers are chosen.
        calibration: What it is asked to calibrate with.
        described: sha256 of its files without weights, by name.
        hashing: The same of its shards, once they are read.
        workspace: The cache.
        until: The last pass to run.
    """

    plan: Plan
    source: SourceFolder
    config: Json
    index: Mapping[str, TensorRef]
    prompt: PromptSpec
    prompt_files: dict[str, bytes]
    generation: GenerationSpec
    calibration: tuple[Asked, ...]
    described: dict[str, str]
    hashing: Future[dict[str, str]]
    workspace: Workspace
    until: Pass

    @property
    def metadata(self) -> str:
        """Digest of the files without weights."""
        return json_digest(self.described)

    @property
    def hashed(self) -> bool:
        """Whether digests of the weights are there; those that are remembered are, in a moment."""
        wait([self.hashing], timeout=_MOMENT)
        return self.hashing.done()

    @property
    def shards(self) -> str:
        """Digest of the weights; waits until they are read."""
        return json_digest(self.hashing.result())

    def after(self, name: Pass) -> None:
        """Called behind every pass.

        Raises:
            Stopped: It was the last one wanted.
        """
        if name == self.until != PASSES[-1]:
            raise Stopped

    def reaches(self, name: Pass) -> bool:
        """Whether that pass is wanted."""
        return PASSES.index(name) <= PASSES.index(self.until)


@dataclass(frozen=True)
class Graphs:
    """The neutral graphs, as exported (with the list of their parameters) and as simplified."""

    exported: Artifact
    simplified: Artifact

    @property
    def files(self) -> dict[str, Path]:
        """Of the simplified ones, by name."""
        return {name: self.simplified.folder / f"{name}.onnx" for name in GRAPHS}
