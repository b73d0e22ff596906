"""What stands behind the claim that a family is supported.

``evidence.json`` is written from the tests' own tables (``pytest tests/test_documentation.py
--update-readme``) and compared with them, so nothing is claimed here that no test does.
"""

import json
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("evidence.json")


@dataclass(frozen=True)
class Evidence:
    """What is tested of one family; a tuple is empty where nothing is.

    Attributes:
        parity: Random checkpoints whose bundles answer as transformers does, in both splits, in
            chunks of any size and in batches (``tests/build/test_parity.py``).
        real_size: Published configurations that are exported at their size, without weights
            (``tests/benchmarks/test_real_size.py``).
        measured: Models with trained weights whose answers are counted (``vlmc demo --measure``).
    """

    parity: tuple[str, ...] = ()
    real_size: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()


def read_evidence() -> dict[str, Evidence]:
    """By name of the family; one that no test names is left out."""
    found = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        name: Evidence(**{key: tuple(names) for key, names in kinds.items()})
        for name, kinds in found.items()
    }
