"""Raw figures of a model in one JSON file, to which a later run adds rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Results:
    """The figures of one model.

    ``engines[name]`` has ``rounds`` and ``cold`` (lists), ``build``, ``size`` and ``error``;
    ``limits`` has one object per round.

    Args:
        path: The file; what it holds is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = {"engines": {}, "limits": [], "about": {}}
        if path.exists():
            self.values = json.loads(path.read_text(encoding="utf-8"))

    def engine(self, name: str) -> dict[str, Any]:
        """One engine's figures."""
        empty: dict[str, Any] = {"rounds": [], "cold": []}
        found: dict[str, Any] = self.values["engines"].setdefault(name, empty)
        return found

    def note(self, name: str, kind: str, figures: dict[str, Any]) -> None:
        """Adds figures of one engine: ``rounds``, ``cold``, or values of its own."""
        if kind in ("rounds", "cold"):
            self.engine(name)[kind].append(figures)
            self.engine(name).pop("error", None)
        elif kind == "error":
            self.engine(name)["error"] = figures["reason"]
        else:
            self.engine(name)[kind] = figures
            self.engine(name).pop("error", None)
        self.save()

    @property
    def next_round(self) -> int:
        """The first number no round has."""
        engines = self.values["engines"].values()
        used = [row["round"] for one in engines for row in (*one["rounds"], *one["cold"])]
        return max(used, default=-1) + 1

    def save(self) -> None:
        """Writes the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.values, indent=1), encoding="utf-8")
