"""vlmc beside its rivals: ``python -m tests.benchmarks.rivals``. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals import environment, limits, machine, preparation, rounds
from tests.benchmarks.rivals.models import MODELS
from tests.benchmarks.rivals.quiet import Quiet
from tests.benchmarks.rivals.results import Results
from tests.benchmarks.rivals.table import Decoder, shares, table
from tests.benchmarks.rivals.variants import VARIANTS, Place, Variant
from tests.benchmarks.rivals.workload import Workload

REFERENCE = "vlmc int8"
STEPS = ("build", "cold", "rounds")
BASE_MEMORY = 400e6  # of an engine's process, whatever the model
ROOM = 0.7  # of the memory that is free


def main() -> None:
    options = _options()
    chosen = {name: VARIANTS[name] for name in VARIANTS if _wanted(name, options.engines)}
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    rivals, failed = None, {}
    if packages := {one.package for one in chosen.values() if one.package is not None}:
        folder = options.rivals_env or cache / "rivals-env"
        rivals, failed = environment.prepare(folder.absolute(), packages)
    sections = []
    for model in options.models.split(","):
        folder = cache / model
        place = Place(model, folder, rivals, cache / "sources", options.threads)
        results = Results(options.out / f"{model}.json")
        results.values["about"] = machine.described(rivals, options.threads)
        _measure(chosen, place, results, failed, options)
        sections.append(_section(place, results))
    text = "\n".join(sections)
    print(text)
    (options.out / "table.md").write_text(text, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rivals", description=__doc__)
    parser.add_argument("--models", default="llava05", help=f"of {', '.join(MODELS)}")
    parser.add_argument(
        "--engines", default="", help="names, or parts of names: 'vlmc,openvino int8'"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", type=int, default=2, help="fresh processes per engine")
    parser.add_argument("--steps", default=",".join(STEPS), help="what to do of build,cold,rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=33, help="generated in an answer")
    parser.add_argument("--patience", type=float, default=900, help="seconds an answer may take")
    parser.add_argument("--cache", type=Path, default=Path("artifacts/rivals"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/rivals/results"))
    parser.add_argument("--rivals-env", type=Path, help="reuse this environment")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    parser.add_argument("--quiet-with", help="a command that runs its child on a quiet machine")
    parser.add_argument("--quiet-for", type=float, default=60, help="seconds it may take at once")
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds, options.cold, options.tokens = "tiny", 1, 1, 5
    for model in options.models.split(","):
        if model not in MODELS:
            parser.error(f"no model '{model}': {', '.join(MODELS)}")
    return options


def _wanted(name: str, parts: str) -> bool:
    given = [part.strip() for part in parts.split(",")]
    return name in given or any(part in name for part in given if part not in VARIANTS)


def _measure(
    chosen: Mapping[str, Variant],
    place: Place,
    results: Results,
    failed: Mapping[str, str],
    options: argparse.Namespace,
) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / f"{place.model}.log"
    preparation.checkpoint(place)
    if place.rivals is not None and any(one.engine == "llamacpp" for one in chosen.values()):
        environment.llama_sources(place.rivals, place.sources)
    quiet = Quiet(options.quiet_with, options.quiet_for)
    ready = {}
    for name, variant in chosen.items():
        results.engine(name)
        if variant.package in failed:
            results.note(name, "error", {"reason": f"not installed: {failed[variant.package]}"})
            continue
        if "build" in options.steps:
            try:
                if cost := preparation.built(variant, place, quiet, log):
                    results.note(name, "build", cost)
            except preparation.BuildError as error:
                results.note(name, "error", {"reason": f"build: {error}"})
                continue
        if all((place.folder / one).exists() for one in variant.out):
            ready[name] = variant
            results.engine(name)["size"] = preparation.size(variant, place)
        else:
            results.note(name, "error", {"reason": "its files were not built"})
    results.save()
    if not ready:
        return
    workload = _workload(place, options.tokens)
    first = results.next_round
    if "rounds" in options.steps and options.rounds:
        limited = _limits(options, results)
        memory = {
            name: BASE_MEMORY + one.memory * results.engine(name)["size"]
            for name, one in ready.items()
        }
        for group in rounds.groups(memory, ROOM * preparation.available(), REFERENCE):
            some = {name: ready[name] for name in group}
            numbers = range(first, first + options.rounds)
            rounds.living(
                some, place, workload, numbers, quiet, log, options.patience, results.note, limited
            )
            first += options.rounds
    if "cold" in options.steps and options.cold:
        numbers = range(first, first + options.cold)
        rounds.fresh(ready, place, workload, numbers, quiet, log, options.patience, results.note)


def _limits(options: argparse.Namespace, results: Results) -> Callable[[int], None]:
    """Measures what the machine gives in one round; nothing where there is no compiler."""
    program, reason = limits.compiled(options.cache)
    if program is None:
        print(f"limits: {reason}", file=sys.stderr)
        return lambda number: None

    def measure(number: int) -> None:
        found = limits.measured(program, options.threads)
        results.values["limits"].append({"round": number, **found})
        results.save()

    return measure


def _workload(place: Place, tokens: int) -> Workload:
    model = MODELS[place.model]
    return Workload(
        place.checkpoint, model.picture, model.image_tokens, place.folder / "pictures", tokens
    )


def _section(place: Place, results: Results) -> str:
    config: dict[str, Any] = json.loads((place.checkpoint / "config.json").read_text())
    measured = results.values["engines"]
    engines = {name: measured[name] for name in VARIANTS if name in measured}
    about = machine.sentence(results.values["about"])
    limit = shares(engines, results.values["limits"], Decoder.of(config["text_config"]))
    parts = [f"## {MODELS[place.model].title}", about, table(engines, REFERENCE), limit]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
