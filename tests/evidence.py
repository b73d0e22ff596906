"""What the tests do for each family, from the tables that the tests themselves run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.real_size import CONFIGS, REAL_SIZE
from tests.checkpoints import MAKERS
from vlmc.families import FAMILIES, by_model_type

ROOT = Path(__file__).parents[1]
# Models with trained weights that a test or ``vlmc demo --measure`` asks questions.
MEASURED = {"the demo model": ROOT / "vlmc" / "demo" / "model"}


def family_of(checkpoint: str) -> str:
    """The family that a row of ``MAKERS`` is named after; the parity tests hold it to that."""
    named = [name for name in FAMILIES if checkpoint.startswith(name)]
    if not named:
        raise ValueError(f"no family's name begins '{checkpoint}'")
    return max(named, key=len)


def of_folder(folder: Path) -> str:
    """The family that serves a folder's configuration."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return by_model_type(config["model_type"]).name


def gathered() -> dict[str, dict[str, list[str]]]:
    """``vlmc/families/evidence.json``, as the tests would have it."""
    kinds = {
        "parity": {name: family_of(name) for name in MAKERS},
        "real_size": {name: of_folder(CONFIGS / name) for name in REAL_SIZE},
        "measured": {name: of_folder(folder) for name, folder in MEASURED.items()},
    }
    return {
        family: {
            kind: [name for name, of in names.items() if of == family]
            for kind, names in kinds.items()
            if family in names.values()
        }
        for family in FAMILIES
    }
