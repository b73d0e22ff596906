"""``vlmc build``: recipes to bundles, with progress on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.cli.progress import shown
from vlmc.cli.writable import need_folder
from vlmc.errors import VlmcError
from vlmc.schema import Json

if TYPE_CHECKING:
    from vlmc.compiler import Build

DEFAULT_OUT = Path("artifacts")


def build(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files.")],
    out: Annotated[Path, typer.Option("--out", help="The artifacts folder.")] = DEFAULT_OUT,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one value; may be repeated."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="PASS", help="Stop after this pass.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="The cache folder (default: $VLMC_CACHE).")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Build bundles from recipes.

    Passes: load, transform, export, simplify, quantize, compile, reference, check. Each is cached;
    a second build of the same recipe takes seconds.
    """
    from vlmc.compiler import PASSES
    from vlmc.recipe import load_recipe
    from vlmc.schema import lookup

    last = lookup({name: name for name in PASSES}, until or PASSES[-1], kind="pass", at="--until")
    loaded = [(path, load_recipe(path, overrides or ())) for path in recipes]
    names = [recipe.name for _, recipe in loaded]
    for name in names:
        if names.count(name) > 1:
            raise VlmcError(f"two recipes are named '{name}'", at="RECIPE")
    from vlmc.compiler import build as build_recipe
    from vlmc.workspace import cache_dir

    need_folder(out, at="--out")
    need_folder(cache or cache_dir(), at="--cache" if cache else "the cache")
    results = []
    for path, recipe in loaded:
        with shown(recipe.name) as (progress, bytes_done):
            made = build_recipe(
                recipe,
                at=str(path),
                out=out,
                cache=cache or cache_dir(),
                until=last,
                offline=offline,
                progress=progress,
                bytes_done=bytes_done,
            )
        results.append(_described(made))
        if made.bundle is not None:
            print(f"{recipe.name}: {made.bundle}", file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else {"builds": results}, indent=2))


def _described(made: Build) -> Json:
    return {
        "bundle": None if made.bundle is None else str(made.bundle),
        "version": made.version,
        "passes": [
            {
                "name": record.name,
                "seconds": round(record.seconds, 3),
                "cache_hit": record.hit,
                "size": record.size,
                "peak_memory": record.peak,
            }
            for record in made.passes
        ],
    }
