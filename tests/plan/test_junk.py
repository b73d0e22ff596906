"""Whatever a model's JSON holds, a plan is made or the user is told."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmc.errors import VlmcError
from vlmc.plan import resolve
from vlmc.recipe import Recipe
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
NAMES = (
    "llava-1.5-7b",
    "llava-interleave-qwen-0.5b",
    "llava-onevision-0.5b",
    "internvl3-1b",
    "qwen2-vl-2b",
    "qwen2.5-vl-3b",
    "gemma-3-4b-it",
    "paligemma-3b-mix-224",
    "llama-4-scout-17b-16e",
    "ovis2-1b",
    "idefics2-8b",
    "granite-docling-500m",
    "video-llama-3-2b",
)
GONE = "gone"
NUMBERS = (0, -1, 1, 3, 10**30, 1.5, -0.5, 1e308, float("nan"))
MAPPINGS = ({}, {"a": 1}, {"height": 3, "width": "x"}, {"shortest_edge": -4})
JUNK = (None, True, "", "x", "mrope", GONE, [], [1], [None], *NUMBERS, *MAPPINGS)
LOADED = {name: read_checkpoint(CONFIGS / name, tokenizer=False) for name in NAMES}


def paths(value: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from paths(inner, (*at, key))


def changed(values: Json, path: tuple[str, ...], junk: object) -> Json:
    found = copy.deepcopy(values)
    inner = found
    for key in path[:-1]:
        inner = inner[key]  # type: ignore[assignment]
    inner.pop(path[-1])
    if junk is not GONE:
        inner[path[-1]] = junk
    return found


@pytest.mark.parametrize("part", ["config", "image_processor"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_junk_in_a_models_files(name: str, part: str, data: st.DataObject) -> None:
    checkpoint = LOADED[name]
    values: Json = getattr(checkpoint, part)
    path = data.draw(st.sampled_from(list(paths(values))))
    junk = data.draw(st.sampled_from(JUNK))
    broken = replace(checkpoint, **{part: changed(values, path, junk)})
    # Anything but VlmcError, or no end, fails.
    with suppress(VlmcError):
        resolve(Recipe(model="owner/name", name="r"), broken).image_tokens(480, 640)
