"""``vlmc models``: the families, from their table, and what stands behind each."""

import json
from dataclasses import asdict
from typing import Annotated, get_args

import typer

from vlmc.families import FAMILIES
from vlmc.families.evidence import Evidence, read_evidence
from vlmc.schema import CachePrecision, LanguagePrecision, Split, VisionPrecision

_KINDS = {
    "parity": "random checkpoints answer as transformers does: every split, chunks, batches",
    "real-size": "a published configuration is exported at its size, without weights",
    "measured": "a model with trained weights, its answers counted",
}


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the model families, and what was tested of each."""
    supported = {
        "split": get_args(Split),
        "vision": get_args(VisionPrecision),
        "language": get_args(LanguagePrecision),
        "kv-cache": get_args(CachePrecision),
    }
    evidence = read_evidence()
    if as_json:
        rows = [
            {
                "name": row.name,
                "title": row.title,
                "model_types": row.model_types,
                "evidence": asdict(evidence.get(row.name, Evidence())),
            }
            for row in FAMILIES.values()
        ]
        print(json.dumps({"families": rows, "supported": supported}, indent=2))
        return
    lines = [("family", "model_type", "evidence", "models")]
    for row in FAMILIES.values():
        found = asdict(evidence.get(row.name, Evidence()))
        kinds = [kind for kind in _KINDS if found[kind.replace("-", "_")]]
        lines.append((row.name, ", ".join(row.model_types), ", ".join(kinds), row.title))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    for *cells, title in lines:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        print("  ".join([*padded, title]))
    print("\nEvidence")
    for kind, meaning in _KINDS.items():
        print(f"  {kind:<9}  {meaning}")
    print("\nEvery family can be built as")
    for key, words in supported.items():
        print(f"  {key:<9}  {', '.join(words)}")
