"""The products alone, at every size that is odd in some way, against numpy in float64."""

import ctypes

import numpy as np
import pytest

from tests.backends.kernels import (
    KERNELS,
    call,
    dequantize,
    laned,
    linear_blocks,
    linear_float,
    linear_panels,
    near,
    panelled,
    with_kernels,
)
from tests.backends.test_native_ops import blocks, channels

ROWS = (0, 1, 3, 8, 9, 16, 37)


def some_rows(m, k):
    """Normal ones; and one of zeros, a huge, a tiny one, one with a peak: as many as there are."""
    rng = np.random.default_rng([m, k])
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[1:2] = 0
    x[2:3] *= np.float32(1e30)
    x[3:4] *= np.float32(1e-30)
    x[4:5] *= np.float32(1e-9)
    x[5:6, k // 2] = 1000
    return x


def in_panels(parts):
    """Codes, scales and zero points or None, as ``vlmc::linear_blocks`` reads them."""
    found = [parts.get(name) for name in ("w", "scales", "zero_points")]
    return [None if part is None else laned(part) for part in found]


def off(y, expected):
    """Error as a share of what is expected, over all."""
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@with_kernels
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(
    ("k", "n"),
    [(1, 1), (64, 16), (63, 33), (130, 100), (7, 65), (200, 191), (33, 1153), (9, 8300)],
)
def test_linear_panels(m, k, n):
    parts = channels(np.random.default_rng(7), k, n)
    x = some_rows(m, k)
    for bias in (None, parts["bias"]):
        y = np.full((m, n), np.nan, np.float32)
        call("vlmc_linear_panels", x, m, k, n, parts["w"], parts["scales"], bias, y)
        near(y, *linear_panels(x, parts["w"], parts["scales"], bias))


@with_kernels
@pytest.mark.parametrize("m", [5, 13, 40, 61])
@pytest.mark.parametrize("k", [4, 37, 600, 1040])
@pytest.mark.parametrize("most", [16, 64, 65, 90, 91, 127, 128])
def test_sums_of_bytes_are_exact(most, k, m):
    """Whatever they come to: 16 bits may hold two or eight products, or not even two."""
    rng = np.random.default_rng([most, k, m])
    codes = rng.integers(-127, 128, (m, k))
    codes[::2] = rng.choice([-127, 0, 127], codes[::2].shape)
    codes[m // 2] = 127
    codes[m // 3] = np.where(np.arange(k) % 4 < 2, 127, -127)
    codes[:, rng.integers(k)] = 127  # so that a row's scale is 1
    w = rng.integers(-most, min(most, 127) + 1, (80, k)).astype(np.int8)
    w[3], w[20], w[40, k // 2 :] = -most, min(most, 127), 1
    w[50] = np.where(np.arange(k) % 2, 2, -most)
    y = np.full((m, 80), np.nan, np.float32)
    ones = np.ones(80, np.float32)
    call("vlmc_linear_panels", codes.astype(np.float32), m, k, 80, panelled(w), ones, None, y)
    np.testing.assert_array_equal(y, codes @ w.T.astype(np.int64))


@with_kernels
@pytest.mark.parametrize("m", [40, 60, 70])
def test_more_codes_than_a_cache_keeps(m):
    """Of few tokens: each 32 of them are as many as are multiplied together."""
    k, n = 53248, 5
    parts = channels(np.random.default_rng(7), k, n)
    x = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
    y = np.full((m, n), np.nan, np.float32)
    call("vlmc_linear_panels", x, m, k, n, parts["w"], parts["scales"], parts["bias"], y)
    near(y, *linear_panels(x, parts["w"], parts["scales"], parts["bias"]))


@with_kernels
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("m", ROWS)
def test_linear_blocks(m, block, bits):
    sizes = ((1, 1), (block, 63), (block + 1, 64), (130, 65), (3 * block, 7), (513, 130))
    for k, n in sizes:
        parts = blocks(np.random.default_rng([k, n]), k, n, bits, block)
        w, scales = parts["w"], parts["scales"]
        scales[n // 2 :, 0] *= -1
        scales[n // 3] = 0
        x = some_rows(m, k)
        for bias in (None, parts["bias"]):
            y = np.full((m, n), np.nan, np.float32)
            call("vlmc_linear_blocks", x, m, k, n, bits, block, *in_panels(parts), bias, y)
            near(y, *linear_blocks(x, w, scales, parts.get("zero_points"), bits, bias))


@pytest.fixture
def asked_as():
    """A function that has memory read as Zen 3 and 4 like it or not: AVX2's library has one way."""
    library = ctypes.CDLL(str(KERNELS)) if KERNELS else None
    usual = getattr(library, "vlmc_kernels_zen", None)
    before = usual(1) if usual else 0
    yield usual or (lambda is_zen: 0)
    if usual:
        usual(before)


@with_kernels
@pytest.mark.parametrize("m", [1, 2, 4, 8, 12])
@pytest.mark.parametrize(("k", "n"), [(9, 130), (31, 64), (300, 330), (1030, 64), (4100, 200)])
def test_the_order_memory_is_read_in_changes_no_bit(asked_as, k, n, m):
    rng = np.random.default_rng([m, k])
    x = some_rows(m, k)
    panels, in_blocks = channels(rng, k, n), [(4, 32), (4, 64), (8, 32)]
    of_blocks = [in_panels(blocks(rng, k, n, bits, block)) for bits, block in in_blocks]
    y = np.full((2, 4, m, n), np.nan, np.float32)
    for zen in (0, 1):
        asked_as(zen)
        parts = (panels["w"], panels["scales"], panels["bias"])
        call("vlmc_linear_panels", x, m, k, n, *parts, y[zen, 0])
        for i, (bits, block) in enumerate(in_blocks):
            parts = (bits, block, *of_blocks[i], None)
            call("vlmc_linear_blocks", x, m, k, n, *parts, y[zen, i + 1])
    near(y[0, 0], *linear_panels(x, panels["w"], panels["scales"], panels["bias"]))
    np.testing.assert_array_equal(y[1], y[0])


@with_kernels
@pytest.mark.parametrize("m", [1, 8, 9, 64])
@pytest.mark.parametrize(("bits", "allowed"), [(4, 0.012), (8, 0.012)])
@pytest.mark.parametrize("block", [32, 128])
def test_rounding_activations_costs_little(m, bits, allowed, block):
    """Against the same weights and activations that are not rounded at all."""
    rng = np.random.default_rng(5)
    k, n = 1024, 96
    parts = blocks(rng, k, n, bits, block)
    zeros = parts.get("zero_points")
    if zeros is not None:
        zeros[...] = 0x87  # as weights have them: near the middle
    scales = parts["scales"]
    scales[...] = rng.uniform(0.02, 0.05, scales.shape)  # rounded to float16
    x = rng.standard_normal((m, k)).astype(np.float32)
    y = np.empty((m, n), np.float32)
    call("vlmc_linear_blocks", x, m, k, n, bits, block, *in_panels(parts), None, y)
    exact = x.astype(np.float64) @ dequantize(parts["w"], scales, zeros, bits).T
    assert 1e-4 < off(y, exact) < allowed


@with_kernels
@pytest.mark.parametrize("m", [*ROWS, 4, 5, 64, 101])
@pytest.mark.parametrize("half", [0, 1])
def test_linear_float(m, half):
    for k, n in ((1, 1), (3, 5), (64, 64), (100, 130), (512, 63), (1100, 70), (2100, 130)):
        rng = np.random.default_rng([k, n])
        w = rng.standard_normal((n, k)).astype(np.float16 if half else np.float32)
        bias = rng.standard_normal(n).astype(np.float32)
        x = some_rows(m, k)
        for added in (None, bias):
            y = np.full((m, n), np.nan, np.float32)
            call("vlmc_linear_float", x, m, k, n, w, half, added, y)
            near(y, *linear_float(x, w, added))


@with_kernels
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("m", [1, 12, 40])
@pytest.mark.parametrize("k", [64, 300])
@pytest.mark.parametrize("place", [0, 37, -1])
def test_a_number_that_is_none_is_not_hidden(place, k, m, bad):
    """Of its own row every result is none either; the other rows' are as they were."""
    n = 70
    whole, parts = (
        channels(np.random.default_rng(1), k, n),
        blocks(np.random.default_rng(1), k, n, 4, 32),
    )
    bytes_ = blocks(np.random.default_rng(1), k, n, 8, 32)
    w = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
    calls = {
        "vlmc_linear_panels": (whole["w"], whole["scales"], None),
        "vlmc_linear_float": (w, 0, None),
        "vlmc_linear_blocks": (4, 32, *in_panels(parts), None),
        "vlmc_linear_blocks ": (8, 32, *in_panels(bytes_), None),
    }
    x = np.random.default_rng(3).standard_normal((m, k)).astype(np.float32)
    odd = x.copy()
    odd[m // 2, place] = bad
    for name, rest in calls.items():
        good, y = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
        call(name.strip(), x, m, k, n, *rest, good)
        call(name.strip(), odd, m, k, n, *rest, y)
        assert not np.isfinite(y[m // 2]).any(), name
        assert np.array_equal(np.delete(y, m // 2, 0), np.delete(good, m // 2, 0)), name
