"""The page on recipes names every key, and its example is valid."""

import re
from pathlib import Path

import pytest

from vlmc.recipe import load_recipe
from vlmc.recipe.schema import section_keys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")


def key_paths() -> list[str]:
    sections = section_keys()
    plain = [key for key in sections[""] if key not in sections]
    return plain + [f"{name}.{key}" for name, keys in sections.items() if name for key in keys]


@pytest.mark.parametrize("path", key_paths())
def test_every_key_is_documented(path: str) -> None:
    assert f"`{path}`" in PAGE


def test_no_other_key_is_documented() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", PAGE, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    assert named - {"precision"} == set(key_paths())


def test_the_example_is_a_recipe(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.+?)```", PAGE, re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example)
    assert load_recipe(path).ctx_len == 3000
    assert load_recipe(path) == load_recipe(ROOT / "recipes" / "llava.yaml", ["name=example"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_recipes_are_valid(path: Path) -> None:
    assert load_recipe(path).name == path.stem
