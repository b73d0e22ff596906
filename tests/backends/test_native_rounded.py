"""A prefill's attention of factors that are rounded to bfloat16, against numpy in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.backends.attention import (
    ALLOWED,
    CPU,
    TABLES,
    asked,
    cached_session,
    expected_of,
    run,
    seen_by_tower,
    tower_expected,
    tower_session,
    turned,
)
from tests.backends.kernels import near, with_kernels

ROUNDING = 2.0**-8  # of a product of two factors that are 2^-9 of themselves off at most


def check(session, feeds, heads, tables, *, exact=False, **attributes):
    """Caches are not rounded, and answers no further than their factors are."""
    size = feeds["past_key"].shape[-1]
    plain = dict(feeds)
    if tables:
        for name, count in (("query", heads), ("key", feeds["past_key"].shape[1])):
            plain[name] = turned(feeds[name], count, **tables)
    expected, *caches = expected_of(plain, heads, size**-0.5, **attributes)
    out, *present = run(session, feeds | tables, in_place=True)
    tops = [np.abs(array).max() for array in (feeds["query"], *caches)]
    off = ROUNDING * tops[0] * tops[1] * size**0.5
    slack = 1e-3 if caches[0].dtype == np.float16 else 0
    allowed = ALLOWED if exact else (2 * off + 2 * ROUNDING) * tops[2]
    near(out, expected, allowed + slack)
    # Errors have no direction: the usual one is far smaller.
    assert np.abs(out - expected).mean() < 6e-3
    if not exact and "avx512_bf16" in CPU:
        assert np.abs(out - expected).max() > 1e-4
    for cache, wanted in zip(present, caches, strict=True):
        near(cache.astype(np.float32), wanted, 5e-3 if slack else 2e-6)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (9, 0.0), (0, 5.0), (70, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 24), (7, 1, 64), (2, 1, 130)])
def test_a_step_of_rounded_factors(heads, kv_heads, size, window, softcap, half, threads):
    """Keys that a window hides lie before and behind those that are seen."""
    given = {"window": window, "softcap": softcap}
    session = cached_session(
        heads, kv_heads, size, half=half, threads=threads, rounded=True, **given
    )
    for lengths, step in (([64], 64), ([7, 140, 72], 7), ([300, 201], 200)):
        feeds = asked(lengths, step, 301, heads, kv_heads, size, half)
        check(session, feeds, heads, {}, **given)


@with_kernels
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("window", [0, 900])
def test_many_keys_are_weighed_part_by_part(window, half):
    session = cached_session(6, 2, 64, half=half, window=window, rounded=True)
    feeds = asked([2100, 641, 1290], 40, 2100, 6, 2, 64, half)
    check(session, feeds, 6, {}, window=window)


@with_kernels
def test_many_keys_of_a_tower():
    """A row may see none of the first ones, none of the last ones, or none at all."""
    heads, size, step, total = 2, 40, 37, 1500
    feeds = seen_by_tower(1, step, heads, heads, size, total)
    bias = np.random.default_rng(0).standard_normal((1, heads, step, total)).astype(np.float32)
    bias[:, 0, 3, :1400], bias[:, 1, 7, 30:], bias[:, :, 9] = (-np.inf,) * 3
    session = tower_session(heads, heads, size, op="TowerAttentionBf16")
    [y] = session.run(None, feeds | {"bias": bias})
    bias[:, :, 9] = 0
    expected = tower_expected(feeds, heads, heads, size, bias)
    expected[0, 9] = 0
    assert np.abs(y - expected).max() < 0.01
    assert np.abs(y - expected).mean() < 1e-3


@with_kernels
@pytest.mark.parametrize("half", [False, True])
def test_heads_are_turned_before_they_are_rounded(half):
    session = cached_session(6, 2, 64, half=half, rotary=True, rounded=True)
    feeds = asked([40, 90], 40, 100, 6, 2, 64, half)
    angle = np.random.default_rng(1).uniform(0, 9, (2, 40, 32))
    made = (np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    check(session, feeds, 6, dict(zip(TABLES, made, strict=True)))


@with_kernels
@pytest.mark.parametrize(("size", "step"), [(24, 1), (7, 40)])
def test_one_token_and_odd_heads_are_not_rounded(size, step):
    session = cached_session(4, 2, size, rounded=True)
    check(session, asked([90], step, 100, 4, 2, size), 4, {}, exact=True)


@with_kernels
def test_what_all_keys_share_is_not_rounded():
    """As where keys have a bias far larger than what differs between them."""
    session = cached_session(4, 2, 64, rounded=True)
    feeds = asked([130], 130, 130, 4, 2, 64)
    feeds["key"] += 200 * np.sin(np.arange(128, dtype=np.float32))
    expected, *_ = expected_of(feeds, 4, 64**-0.5)
    out, *_ = run(session, feeds, in_place=True)
    assert np.abs(out - expected).mean() < 6e-3


@with_kernels
def test_the_same_without_tiles():
    """As on CPUs without AMX. Whether there are tiles is asked once in a process."""
    tower = "tests/backends/test_native_tower.py::test_a_tower_of_rounded_factors"
    few = "0-0.0-True or 70-2.0-False or turned or share or not_rounded or many or 33-257"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, __file__, tower, "-k", few],
        env=os.environ | {"VLMC_TILES": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
