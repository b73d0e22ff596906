"""``vlmc models``: the families, from their table."""

import json
from typing import Annotated, get_args

import typer

from vlmc.families import FAMILIES
from vlmc.schema import CachePrecision, LanguagePrecision, Split, VisionPrecision


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the model families."""
    supported = {
        "split": get_args(Split),
        "vision": get_args(VisionPrecision),
        "language": get_args(LanguagePrecision),
        "kv-cache": get_args(CachePrecision),
    }
    if as_json:
        rows = [
            {"name": row.name, "title": row.title, "model_types": row.model_types}
            for row in FAMILIES.values()
        ]
        print(json.dumps({"families": rows, "supported": supported}, indent=2))
        return
    header = ("family", "model_type", "models")
    lines = [header]
    lines += [(row.name, ", ".join(row.model_types), row.title) for row in FAMILIES.values()]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    for name, types, title in lines:
        print(f"{name:<{widths[0]}}  {types:<{widths[1]}}  {title}")
    print("\nEvery family can be built as")
    for key, words in supported.items():
        print(f"  {key:<8}  {', '.join(words)}")
