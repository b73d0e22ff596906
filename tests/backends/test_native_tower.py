"""A tower's attention, of our kernels through onnxruntime, against numpy in float64."""

import numpy as np
import pytest

from tests.backends.attention import ALLOWED, CPU, seen_by_tower, tower_expected, tower_session
from tests.backends.kernels import near, with_kernels


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "step"), [(1, 1), (2, 33), (5, 16), (1, 257), (3, 64)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (2, 2, 72), (6, 2, 24)])
def test_a_tower(heads, kv_heads, size, batch, step, threads):
    feeds = seen_by_tower(batch, step, heads, kv_heads, size)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    [y] = tower_session(**given, bias=False, threads=threads).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)
    session = tower_session(**given, threads=threads)
    for shape in {(1, 1), (batch, 1), (1, heads), (batch, heads)}:
        rng = np.random.default_rng(shape)
        bias = rng.standard_normal((*shape, step, step)).astype(np.float32)
        hidden = rng.random(bias.shape) < 0.4
        hidden[..., 0] = False
        for never in (0.0, -np.inf, np.finfo(np.float32).min):
            bias[hidden] = never
            [y] = session.run(None, feeds | {"bias": bias})
            near(y, tower_expected(feeds, **given, bias=bias), ALLOWED)


@with_kernels
@pytest.mark.parametrize("total", [511, 2_900, 6_000])
def test_a_tower_of_many_keys(total):
    """Rows that take turns with what is near of keys, and those whose scores have no room near."""
    given = {"heads": 2, "kv_heads": 1, "size": 40}
    feeds = seen_by_tower(1, 50, **given, total=total)
    [y] = tower_session(**given, bias=False).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)


@with_kernels
def test_a_tower_that_sees_nothing_answers_zeros():
    given = {"heads": 2, "kv_heads": 1, "size": 40}
    feeds = seen_by_tower(1, 50, **given)
    feeds |= {name: feeds[name][:, :0] for name in ("key", "value")}
    [y] = tower_session(**given, bias=False).run(None, feeds)
    assert y.shape == (1, 50, 80)
    assert not y.any()


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("step", "total"), [(1, 1), (5, 70), (70, 5), (33, 257), (64, 64)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(2, 2, 64), (6, 2, 24), (2, 2, 72), (1, 1, 130), (3, 3, 7)]
)
def test_a_tower_of_rounded_factors(heads, kv_heads, size, step, total, threads):
    """Factors of bfloat16, 2^-9 of themselves off at most; an odd head stays float32."""
    feeds = seen_by_tower(2, step, heads, kv_heads, size, total)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    bias = np.random.default_rng(step).standard_normal((2, 1, step, total)).astype(np.float32)
    bias[:, :, :, total // 2 + 1 :] = -np.inf
    rounding = 2.0**-8
    # A score of q and k is off by that share of |q| |k|, its exponential by as much in relation;
    # so are shares and values themselves.
    off = rounding * np.abs(feeds["query"]).max() * np.abs(feeds["key"]).max() * size**0.5
    allowed = (2 * off + 2 * rounding) * np.abs(feeds["value"]).max()
    for added in (None, bias):
        wanted = tower_expected(feeds, **given, bias=added)
        plain = {"bias": added} if added is not None else {}
        session = tower_session(
            **given, bias=added is not None, threads=threads, op="TowerAttentionBf16"
        )
        [y] = session.run(None, feeds | plain)
        near(y, wanted, ALLOWED if size % 2 else allowed)
        # Errors have no direction: the usual one is far smaller.
        assert np.abs(y - wanted).mean() < 6e-3
        if not size % 2 and "avx512_bf16" in CPU:
            assert np.abs(y - wanted).max() > 1e-4


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("step", "total"), [(1, 4), (5, 70), (70, 5), (32, 257)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(2, 2, 64), (6, 2, 24)])
def test_queries_of_one_sequence_see_another(heads, kv_heads, size, step, total, threads):
    feeds = seen_by_tower(3, step, heads, kv_heads, size, total)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    [y] = tower_session(**given, bias=False, threads=threads).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)
    session = tower_session(**given, threads=threads)
    for shape in ((1, 1, 1), (3, 1, 1), (3, heads, step), (1, heads, step)):
        bias = np.random.default_rng(shape).standard_normal((*shape, total)).astype(np.float32)
        bias[..., : total // 2] = -np.inf
        [y] = session.run(None, feeds | {"bias": bias})
        near(y, tower_expected(feeds, **given, bias=bias), ALLOWED)


@with_kernels
def test_a_query_that_sees_nothing():
    """All at minus infinity: zeros. All at one number far below every score: the mean."""
    heads, size, step = 2, 24, 20
    feeds = seen_by_tower(1, step, heads, heads, size)
    bias = np.zeros((1, 1, step, step), np.float32)
    bias[0, 0, 3], bias[0, 0, 7] = -np.inf, np.finfo(np.float32).min
    [y] = tower_session(heads, heads, size).run(None, feeds | {"bias": bias})
    bias[0, 0, [3, 7]] = 0
    expected = tower_expected(feeds, heads, heads, size, bias)
    expected[0, 3] = 0
    expected[0, 7] = feeds["value"][0].mean(axis=0)
    near(y, expected, ALLOWED)
