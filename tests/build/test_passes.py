"""The passes as a user sees them: reproducible, cached, stoppable."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.test_parity import compare
from vlmc.compiler import PASSES
from vlmc.errors import VlmcError
from vlmc.passes.reference import Reference

pytestmark = pytest.mark.build
ROOT = Path(__file__).parents[2]
ENTRY = "from vlmc.cli import script; script()"
NAME = "llava-clip-llama"


def command(folder: Path, seed: int, *words: str) -> dict:
    """``vlmc build --json`` as its own process, standing in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "build", *words, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def contents(bundle: Path) -> dict[str, bytes]:
    files = (path for path in bundle.rglob("*") if path.is_file())
    return {str(path.relative_to(bundle)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", [NAME, "qwen2-vl"])
def test_another_process_folder_cache_and_hash_seed_give_the_same_bytes(workshop, tmp_path, name):
    here = workshop.build(name)
    folder = tmp_path / "somewhere" / "else"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(workshop.checkpoint(name))
    recipe = folder / f"{name}.yaml"
    recipe.write_text(workshop.recipe(name).read_text(encoding="utf-8"), encoding="utf-8")
    there = command(folder, 77, recipe.name, "--cache", "cache")
    assert not any(made["cache_hit"] for made in there["passes"])
    files, others = contents(here.bundle), contents(folder / there["bundle"])
    assert {path for path in files if files[path] != others.get(path)} == set()
    assert (here.version, files.keys()) == (there["version"], others.keys())


def hits(made) -> dict[str, bool]:
    return {record.name: record.hit for record in made.passes}


def test_a_second_build_is_all_hits(workshop):
    workshop.build(NAME)
    made = workshop.build(NAME)
    assert hits(made) == dict.fromkeys(PASSES, True)


@pytest.mark.parametrize("change", ["ctx-len=300", "prefill-seq-len=40", "batch-size=2"])
def test_another_length_reads_no_weights_again(workshop, change):
    workshop.build(NAME)
    made = workshop.build(NAME, change)
    assert hits(made) == {**dict.fromkeys(PASSES, True), "check": False}


def test_another_split_lowers_again(workshop):
    workshop.build(NAME)
    made = workshop.build(NAME, "split=single", "ctx-len=280")
    assert [name for name, hit in hits(made).items() if not hit][-1] == "check"
    assert hits(made)["quantize"]


def test_another_precision_exports_nothing_again(workshop):
    workshop.build(NAME)
    made = workshop.build(NAME, "precision.language=int8", "ctx-len=280")
    assert all(hits(made)[name] for name in ("load", "transform", "export", "simplify"))


@pytest.mark.parametrize("last", PASSES)
def test_a_build_stops_where_it_is_told(workshop, tmp_path, last):
    out = tmp_path / "artifacts"
    made = workshop.build(NAME, until=last, out=out)
    assert [record.name for record in made.passes] == list(PASSES[: PASSES.index(last) + 1])
    assert (made.bundle is None) == (last != "check")
    assert out.exists() == (last == "check")


def test_a_check_that_fails_leaves_nothing_where_bundles_are(workshop, tmp_path):
    """Its weights were being laid beside it."""
    out = tmp_path / "artifacts"
    with pytest.raises(VlmcError, match=r"checks\.max-logit-error"):
        workshop.build(NAME, "checks.reference=auto", "checks.max-logit-error=1e-12", out=out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["said-tied-and-equal", "said-tied-but-different"])
def test_the_weights_decide_a_tie_not_what_another_checkpoint_left_in_the_cache(workshop, name):
    """Same configuration and shapes: only values say whether the head is the embedding."""
    for other in ("said-tied-and-equal", "said-tied-but-different"):
        workshop.build(other, until="export")
    compare(workshop, name, "landscape")


# A template that only the tokenizer has; tiles, as many as the recipe allows; tiles of all pictures
# in one; a class for videos too.
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("older-processor", ()),
        ("internvl", ("images.max-tiles=2",)),
        ("idefics3", ()),
        ("llava-next-clip-mistral", ()),
        ("smolvlm", ()),
    ],
)
def test_the_check_reads_a_checkpoint_as_the_bundle_does(workshop, name, overrides):
    made = workshop.build(name, "checks.reference=auto", *overrides)
    report = json.loads((made.bundle / "report/build.json").read_text(encoding="utf-8"))
    figures = report["check"]["questions"]
    assert len(figures) == 3
    assert all(f["logit_error"] < 1e-4 and f["token_agreement"] == 1 for f in figures)


def test_a_second_length_asks_transformers_nothing_again(workshop):
    workshop.build("internvl", "checks.reference=auto", "images.max-tiles=2")
    made = workshop.build(
        "internvl", "checks.reference=auto", "images.max-tiles=2", "ctx-len=300", "split=single"
    )
    assert hits(made)["reference"]
    assert not hits(made)["check"]
    report = json.loads((made.bundle / "report/build.json").read_text(encoding="utf-8"))
    assert all(figures["logit_error"] < 1e-4 for figures in report["check"]["questions"])


def test_what_calibrates_and_what_compares_is_asked_in_one_reading(workshop, tmp_path, monkeypatch):
    """Either alone where the other one is known; and nothing is compared that is not wanted."""
    asked = []
    answers = Reference.answers

    def counted(self, askings, *ended):
        asked.append([one.features for one in askings])
        return answers(self, askings, *ended)

    monkeypatch.setattr(Reference, "answers", counted)

    def build(*overrides, **options):
        asked.clear()
        made = workshop.build(NAME, *overrides, "checks.reference=auto", cache=cache, **options)
        return made, [(one.count(False), one.count(True)) for one in asked]

    cache = tmp_path / "cache"
    _, found = build("precision=int8", until="quantize")
    assert found == [(8, 0)]
    made, found = build("precision=int8")
    assert found == [(0, 3)]
    apart = contents(made.bundle)
    cache = tmp_path / "other"
    made, found = build("precision=int8")
    assert found == [(8, 3)]
    assert contents(made.bundle) == apart
    assert build("precision=int8")[1] == []
    assert build("precision=int4")[1] == [(8, 0)]
