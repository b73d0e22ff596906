"""``vlmc demo``: the packaged model built and asked about sample pictures, which it shows."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.cli.progress import shown
from vlmc.cli.writable import need_folder
from vlmc.errors import VlmcError

if TYPE_CHECKING:
    from PIL import Image

    from vlmc.runtime import Model

_PACKAGE = Path(__file__).parents[1]
MODEL = _PACKAGE / "demo" / "model"
SAMPLES = _PACKAGE / "demo" / "samples"
DEFAULT_OUT = Path("artifacts")


def demo(
    out: Annotated[Path, typer.Option("--out", help="The artifacts folder.")] = DEFAULT_OUT,
    measure: Annotated[
        int | None,
        typer.Option(
            "--measure", min=1, help="Instead, count right answers on this many unseen pictures."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of its recipe."),
    ] = None,
) -> None:
    """Build the packaged demo model and ask it about a few pictures.

    The recipe is recipes/demo.yaml: a small LLaVA that knows coloured shapes and short words.
    """
    from vlmc.compiler import build
    from vlmc.recipe import load_recipe
    from vlmc.runtime import load
    from vlmc.workspace import cache_dir

    path = recipe_path()
    recipe = load_recipe(path, [f"model={json.dumps(str(MODEL))}", *(overrides or ())])
    need_folder(out, at="--out")
    need_folder(cache_dir(), at="the cache")
    with shown(recipe.name) as (progress, bytes_done):
        made = build(
            recipe,
            at=str(path),
            out=out,
            cache=cache_dir(),
            progress=progress,
            bytes_done=bytes_done,
        )
    assert made.bundle is not None
    model = load(made.bundle)
    if measure is not None:
        _measure(model, measure)
        return
    _ask(model)
    sample = SAMPLES / next(iter(_samples()))
    print(f"\nThe bundle: {made.bundle}\nAsk it something else:")
    print(f"  vlmc run {out / recipe.name} --image {sample} --prompt 'What do you see?'")


def recipe_path() -> Path:
    """``recipes/demo.yaml`` of the checkout, or as the package installed it.

    Raises:
        VlmcError: It is in neither place.
    """
    installed = Path(sysconfig.get_path("data")) / "share" / "vlmc"
    for home in (_PACKAGE.parent, installed):
        path = home / "recipes" / "demo.yaml"
        if path.is_file():
            return path
    raise VlmcError("the demo's recipe was not installed", hint="pip install vlmc again")


def _samples() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(
        (SAMPLES / "questions.json").read_text(encoding="utf-8")
    )
    return found


def _ask(model: Model) -> None:
    from PIL import Image
    from rich.console import Console

    from vlmc.cli.picture import blocks

    console = Console(highlight=False)
    for name, questions in _samples().items():
        console.print(f"\n{name}", style="bold")
        with Image.open(SAMPLES / name) as picture:
            console.print(blocks(picture, color=console.color_system is not None))
        for asked in questions:
            answer = model.generate(prompt=asked["question"], images=[SAMPLES / name])
            console.print(f"  {asked['question']}", style="dim")
            console.print(f"    {answer.text}", markup=False, soft_wrap=True)


def _measure(model: Model, pictures: int) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from vlmc.demo.score import score
    from vlmc.runtime import Request

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=pictures)

        def answers(picture: Image.Image, questions: Sequence[str]) -> list[str]:
            bar.advance(task)
            requests = [Request(prompt=question, images=[picture]) for question in questions]
            return [answer.text for answer in model.generate_batch(requests)]

        found = score(answers, pictures=pictures)
    for kind, tally in {**found["kinds"], "overall": found["overall"]}.items():
        print(f"{kind:<10} {tally['right']:>5} of {tally['asked']:<5} {tally['accuracy']:.2%}")
