"""``vlmc check``: a recipe validated and its plan printed, without torch and without weights."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlmc.bundle.manifest import TensorSpec
from vlmc.cli.sizes import read_picture_size, size_text
from vlmc.errors import VlmcError
from vlmc.plan import Plan, ProgramPlan
from vlmc.plan import resolve as resolve_plan
from vlmc.recipe import Recipe, load_recipe, recorded
from vlmc.schema import Json
from vlmc.sources import SourceFolder, UnreachableError, read_checkpoint
from vlmc.sources import resolve as resolve_source

TYPICAL = ("640x480", "1024x1024", "1920x1080", "1080x1920")
Rows = list[tuple[str, str]]


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one value; may be repeated."),
    ] = None,
    image_sizes: Annotated[
        list[str] | None,
        typer.Option("--image-size", metavar="WxH", help="Count this picture's tokens."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Validate a recipe and print its plan; no torch, no weights."""
    sizes = [(text, *read_picture_size(text)) for text in image_sizes or TYPICAL]
    loaded = load_recipe(recipe, overrides or ())
    try:
        source = resolve_source(loaded, offline=offline, weights=False)
    except UnreachableError as error:
        print(_unknown_json(loaded, error) if as_json else _unknown_text(recipe, loaded, error))
        return
    checkpoint = read_checkpoint(source.folder, tokenizer=False)
    plan = resolve_plan(loaded, checkpoint, recipe_at=str(recipe), model_at=source.name)
    if loaded.quantize.questions is not None:
        from vlmc.passes.calibration import read_calibration

        read_calibration(loaded.quantize.questions)
    counted = {text: _count(plan, width, height) for text, width, height in sizes}
    if as_json:
        print(json.dumps(_plan_json(plan, source, counted), indent=2))
    else:
        print(_plan_text(recipe, plan, source, counted))


def _count(plan: Plan, width: int, height: int) -> int | str:
    """The tokens of a picture, or why the bundle would refuse it."""
    try:
        tokens = plan.image_tokens(height, width)
    except VlmcError as error:
        return error.message
    if tokens >= plan.limits.ctx_len:
        return f"{tokens} tokens do not fit ctx-len {plan.limits.ctx_len}"
    return tokens


def _plan_json(plan: Plan, source: SourceFolder, counted: dict[str, int | str]) -> Json:
    return {
        "recipe": recorded(plan.recipe),
        "model": {"model": source.model, "revision": source.revision, "family": plan.family.name},
        "limits": plan.limits.model_dump(),
        "programs": [
            {
                "name": program.name,
                "inputs": [spec.model_dump(mode="json") for spec in program.inputs],
                "outputs": [spec.model_dump(mode="json") for spec in program.outputs],
            }
            for program in plan.programs
        ],
        "kv_cache_bytes": plan.kv_cache_bytes,
        "weights_bytes": plan.bundle_bytes,
        "image_tokens": {k: v if isinstance(v, int) else None for k, v in counted.items()},
        "refused": {k: v for k, v in counted.items() if isinstance(v, str)},
        "unknown": None,
    }


def _unknown_json(recipe: Recipe, error: VlmcError) -> str:
    return json.dumps({"recipe": recorded(recipe), "unknown": str(error)}, indent=2)


def _unknown_text(path: Path, recipe: Recipe, error: VlmcError) -> str:
    context = f"ctx-len {recipe.ctx_len}" if recipe.ctx_len else "ctx-len as the model has it"
    rows = [
        ("model", recipe.model),
        ("split", recipe.split),
        ("precision", _precision(recipe.precision.model_dump(by_alias=True))),
        ("limits", f"{context}, batch-size {recipe.batch_size}"),
    ]
    reason = "\n".join(f"  {line}" for line in str(error).splitlines())
    return (
        f"{path}: the recipe itself is valid\n{_columns(rows)}\n\n"
        "Not known: programs, KV cache, image tokens, and whether the model fits the recipe:\n"
        f"{reason}"
    )


def _plan_text(path: Path, plan: Plan, source: SourceFolder, counted: dict[str, int | str]) -> str:
    limits, text = plan.limits, plan.facts.text
    revision = f" @ {source.revision}" if source.revision else ""
    weights = size_text(plan.bundle_bytes) if plan.bundle_bytes else None
    images = f"{limits.max_images} image" + "s" * (limits.max_images > 1)
    head: Rows = [
        ("model", f"{source.name}{revision}"),
        ("family", f"{plan.family.name} ({plan.family.title})"),
        ("decoder", f"{text.model_type}, {text.layers} layers, hidden {text.hidden}"),
        ("split", plan.recipe.split),
        ("precision", _precision(vars(plan.storage))),
        ("limits", f"ctx-len {limits.ctx_len}, prefill-seq-len {limits.prefill_seq_len}"),
        ("", f"batch-size {limits.batch_size}, {images} per prompt"),
        *[("", f"a prefill step holds {what} whole") for what in _wholes(plan)],
        ("KV cache", size_text(plan.kv_cache_bytes)),
        ("weights", f"about {weights}" if weights else "not known before the build"),
    ]
    parts = [f"{path}: valid", _columns(head)]
    parts.extend(_program_text(program) for program in plan.programs)
    tokens = [(size, _tokens_text(found)) for size, found in counted.items()]
    parts.append(f"image tokens\n{_columns(tokens)}")
    return "\n\n".join(parts)


def _wholes(plan: Plan) -> list[str]:
    """What attends both ways, so that no step may split it."""
    words = {"images": "an image", "prompt": "a prompt", "together": "all images of a prompt"}
    return sorted({words[mask.spans] for mask in plan.facts.masks if mask.spans is not None})


def _tokens_text(found: int | str) -> str:
    return str(found) if isinstance(found, int) else f"refused: {found}"


def _program_text(program: ProgramPlan) -> str:
    rows = [(f"in   {name}", shape) for name, shape in _tensors(program.inputs)]
    rows += [(f"out  {name}", shape) for name, shape in _tensors(program.outputs)]
    return f"program {program.name}\n{_columns(rows)}"


def _tensors(specs: Sequence[TensorSpec]) -> Rows:
    """Names and shapes; the layers of a cache as one row."""
    rows: Rows = []
    last: dict[str, str] = {}
    for spec in specs:
        stem, _, layer = spec.name.partition(".")
        last[stem] = layer
    for spec in specs:
        stem, _, layer = spec.name.partition(".")
        if stem not in last:
            continue
        end = last.pop(stem)
        name = spec.name if end == layer else f"{spec.name} ... {end}"
        shape = ", ".join(map(str, spec.shape))
        rows.append((name, f"{spec.dtype} [{shape}]"))
    return rows


def _precision(parts: Mapping[str, object]) -> str:
    """Words of parts; what else is known of their storage is left out."""
    parts = {name: word for name, word in parts.items() if isinstance(word, str)}
    return ", ".join(f"{name.replace('_', '-')} {word}" for name, word in parts.items())


def _columns(rows: Rows) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
