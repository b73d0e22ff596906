"""README and pages: links that lead somewhere; what is supported, from code and tests."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.evidence import gathered
from vlmc.families import FAMILIES
from vlmc.families.evidence import Evidence, read_evidence
from vlmc.schema import CachePrecision, LanguagePrecision, Split, VisionPrecision

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BEGIN, END = "<!-- from the code: pytest --update-readme -->\n", "<!-- end -->\n"


EVIDENCE = ROOT / "vlmc" / "families" / "evidence.json"


def table() -> str:
    """What ``vlmc models`` prints, as Markdown."""
    evidence = read_evidence()
    words = {
        "vision": get_args(VisionPrecision),
        "language": get_args(LanguagePrecision),
        "KV cache": get_args(CachePrecision),
        "split": get_args(Split),
    }
    lines = ["| family | models | `model_type` | parity | real size | measured |"]
    lines.append("|---|---|---|---|---|---|")
    for row in FAMILIES.values():
        types = ", ".join(f"`{name}`" for name in row.model_types)
        found = evidence.get(row.name, Evidence())
        behind = (
            str(len(found.parity)),
            *(", ".join(n) for n in (found.real_size, found.measured)),
        )
        lines.append(f"| {' | '.join((row.name, row.title, types, *behind))} |")
    choices = "; ".join(f"{part} {', '.join(given)}" for part, given in words.items())
    return "\n".join(lines) + f"\n\nEach can be built with any of: {choices}.\n"


def test_what_is_claimed_of_a_family_is_what_the_tests_do(request: pytest.FixtureRequest) -> None:
    wanted = json.dumps(gathered(), indent=1) + "\n"
    if request.config.getoption("--update-readme"):
        EVIDENCE.write_text(wanted, encoding="utf-8")
    written = EVIDENCE.read_text(encoding="utf-8")
    assert written == wanted, "run: pytest tests/test_documentation.py --update-readme"


def test_no_family_is_without_a_comparison() -> None:
    assert [name for name in FAMILIES if not read_evidence()[name].parity] == []


def test_the_readmes_table_is_the_codes(request: pytest.FixtureRequest) -> None:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    if request.config.getoption("--update-readme"):
        written = table()
        README.write_text(before + BEGIN + written + END + after, encoding="utf-8")
    assert written == table(), "run: pytest tests/test_documentation.py --update-readme"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:vlmc|tests|recipes|docs|\.ci)/[\w./-]+)`", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_reached_from_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_the_readmes_example_is_the_recipe_it_names() -> None:
    named, written = re.findall(
        r"\]\((recipes/[\w.-]+)\):\n\n```yaml\n(.+?)```",
        README.read_text(encoding="utf-8"),
        re.DOTALL,
    )[0]
    recipe = (ROOT / named).read_text(encoding="utf-8")
    assert written == "".join(line for line in recipe.splitlines(True) if not line.startswith("#"))
