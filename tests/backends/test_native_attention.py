"""Attention over a cache, of our kernels through onnxruntime, against numpy in float64."""

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.attention import (
    ALLOWED,
    TABLES,
    asked,
    cached_session,
    check,
    expected_of,
    run,
    tower_session,
    turned,
)
from tests.backends.kernels import near, with_kernels

HEADS = [(4, 4, 8), (4, 2, 24), (7, 1, 64), (6, 3, 80), (2, 1, 128), (3, 1, 256)]


@with_kernels
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (9, 0.0), (0, 5.0), (70, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
def test_a_step_over_a_cache(heads, kv_heads, size, window, softcap, half):
    given = {"window": window, "softcap": softcap}
    session = cached_session(heads, kv_heads, size, half=half, **given)
    for step in (1, 2, 7, 65):
        for past in (0, 5, 130):
            feeds = asked([past + step], step, 200, heads, kv_heads, size, half)
            check(session, feeds, heads, **given)
        rows = [step, step + 130, step + 9]
        check(session, asked(rows, step, 197, heads, kv_heads, size, half), heads, **given)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(7, 1, 64), (6, 2, 40), (3, 3, 64), (4, 2, 128), (5, 1, 24), (8, 2, 256)],
)
def test_one_token_after_many(heads, kv_heads, size, half, window, threads):
    """A head's keys are shared out among threads, those of rows that have next to none too."""
    session = cached_session(heads, kv_heads, size, half=half, window=window, threads=threads)
    for lengths in ([700], [1, 700, 2, 130, 701]):
        feeds = asked(lengths, 1, 701, heads, kv_heads, size, half)
        check(session, feeds, heads, window=window)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "angles"), [(6, 2, 64, 32), (4, 4, 40, 20), (7, 1, 24, 5)]
)
def test_heads_are_turned_first(heads, kv_heads, size, angles, half, threads):
    session = cached_session(heads, kv_heads, size, half=half, threads=threads, rotary=True)
    for lengths, step in (([150], 1), ([1, 300, 0], 1), ([40, 90], 40)):
        feeds = asked(lengths, step, 301, heads, kv_heads, size, half)
        angle = np.random.default_rng(step).uniform(0, 9, (len(lengths), step, angles))
        tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
        plain = feeds | {
            name: turned(feeds[name], count, **tables)
            for name, count in (("query", heads), ("key", kv_heads))
        }
        expected, *caches = expected_of(plain, heads, size**-0.5)
        for in_place in (True, False):
            out, *present = run(session, feeds | tables, in_place=in_place)
            near(out, expected, 1e-3 if half else ALLOWED)
            for cache, wanted in zip(present, caches, strict=True):
                # A number between two halves goes to either.
                near(cache.astype(np.float32), wanted, 5e-3 if half else 2e-6)


@with_kernels
@pytest.mark.parametrize(("angles", "rows"), [(13, 3), (5, 2)])
def test_tables_that_do_not_fit_are_refused(angles, rows):
    session = cached_session(4, 2, 24, rotary=True)
    tables = dict.fromkeys(TABLES, np.ones((1, rows, angles), np.float32))
    with pytest.raises((state.RuntimeException, state.InvalidArgument, state.Fail), match="cos is"):
        session.run(None, asked([3], 3, 8, 4, 2, 24) | tables)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [0, 100])
def test_a_long_step(window, threads):
    session = cached_session(6, 2, 64, window=window, threads=threads)
    check(session, asked([300, 311], 300, 320, 6, 2, 64), 6, window=window)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 40])
@pytest.mark.parametrize("half", [False, True])
def test_a_row_without_a_question_is_left_alone(half, step, threads):
    """Its length is less than the step, or more than its cache holds: zeros, the cache as it was.

    Of a cache that is just full, every place is used.
    """
    session = cached_session(4, 2, 24, half=half, threads=threads)
    for odd in (0, step - 1, -5, -(2**31), 65, 2**31 - 1):
        check(session, asked([64, odd, step], step, 64, 4, 2, 24, half), 4)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_asked(threads):
    session = cached_session(4, 2, 24, threads=threads)
    for lengths, step, capacity in (([], 1, 8), ([], 0, 8), ([3, 0], 0, 8), ([1, 1], 1, 0)):
        check(session, asked(lengths, step, capacity, 4, 2, 24), 4)
    session = tower_session(4, 2, 24, bias=False, threads=threads)
    for batch, step in ((0, 3), (2, 0)):
        feeds = {name: np.zeros((batch, step, n), np.float32) for name, n in KEYS_OF_2.items()}
        assert session.run(None, feeds)[0].shape == (batch, step, 96)


KEYS_OF_2 = {"query": 96, "key": 48, "value": 48}


@with_kernels
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_hidden(name, bad):
    """Whoever sees it gets none. Other rows, and of its own row who comes before, are as ever.

    (Of one step, earlier queries may share the fate of a later value: their weight of it is zero.)
    """
    session = cached_session(4, 2, 24)
    feeds = asked([12, 9], 5, 16, 4, 2, 24)
    good, *_ = run(session, feeds, in_place=True)
    feeds[name][0, 2] = bad
    y, *_ = run(session, feeds, in_place=True)
    sees = slice(2, 3 if name == "query" else 5)
    assert not np.isfinite(y[0, sees]).any()
    spoilt = slice(0 if name == "value" else 2, sees.stop)
    y[0, spoilt] = good[0, spoilt]
    assert np.array_equal(y, good)
