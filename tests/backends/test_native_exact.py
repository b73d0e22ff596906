"""Products of float32 with bfloat16 by tiles: as near to the sum as float32 is."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.backends.kernels import Guarded, near, with_kernels
from vlmc.backends.onnxruntime import native
from vlmc.passes import exact_products

# Rows of x, columns, rows of w: one, whole tiles, tiles and a bit, more than stay near.
SIZES = [(1, 32, 1), (16, 64, 32), (33, 544, 47), (70, 1280, 65), (417, 96, 32)]


def tiled():
    return native.library() is not None and exact_products.can_multiply("BF16", 32)


def numbers(m, k, n):
    random = np.random.default_rng(m)
    x = random.standard_normal((m, k)) * np.exp(3 * random.standard_normal((m, 1)))
    w = (random.standard_normal((n, k)) * 0.02).astype(np.float32)
    return x.astype(np.float32), (w.view(np.uint32) >> 16).astype(np.uint16)


def multiplied(x, w):
    out = np.full((len(x), len(w)), np.nan, np.float32)
    exact_products.multiply(x, w, out)
    return out


@with_kernels
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_what_is_rounded_are_the_sums_alone(m, k, n):
    if not tiled():
        return
    x, w = numbers(m, k, n)
    weights = (w.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    allowed = 1e-6 * np.abs(x.astype(np.float64)) @ np.abs(weights).T
    near(multiplied(x, w), x @ weights.T, allowed)


@with_kernels
def test_a_row_has_the_same_bits_alone_and_among_others():
    if not tiled():
        return
    x, w = numbers(450, 1056, 70)
    whole = multiplied(x, w)
    for some in (slice(0, 1), slice(7, 90), slice(400, 450)):
        assert np.array_equal(multiplied(x[some], w), whole[some])
    wide = np.zeros((450, 100), np.float32)
    exact_products.multiply(x, w[:40], wide[:, 10:50])
    assert np.array_equal(wide[:, 10:50], whole[:, :40])
    assert not wide[:, :10].any()
    assert not wide[:, 50:].any()


@with_kernels
def test_what_is_no_number_stays_none():
    if not tiled():
        return
    x, w = numbers(5, 64, 3)
    x[1, 7], x[2, 40] = np.inf, np.nan
    w[:] |= 1  # no zeros
    found = multiplied(x, w)
    assert np.isinf(found[1]).all()
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 3, 4]]).all()


@with_kernels
@pytest.mark.parametrize(("m", "k", "n"), [(3, 32, 5), (17, 96, 33)])
def test_nothing_is_read_or_written_beyond_the_arrays(m, k, n):
    if not tiled():
        return
    held = [Guarded(array) for array in (*numbers(m, k, n), np.zeros((m, n), np.float32))]
    x, w, out = (one.array for one in held)
    exact_products.multiply(x, w, out)
    assert np.array_equal(out, multiplied(np.array(x), np.array(w)))
    for one in held:
        one.release()


@with_kernels
def test_other_weights_and_other_cpus_have_none():
    assert not exact_products.can_multiply("F16", 64)
    assert not exact_products.can_multiply("BF16", 40)
    code = "from vlmc.passes.exact_products import can_multiply as can; print(can('BF16', 64))"
    for switch in ("VLMC_TILES", "VLMC_KERNELS"):
        environment = {**os.environ, switch: "off"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "False"


@with_kernels
def test_the_kernel_refuses_columns_that_fill_no_tile():
    library = ctypes.CDLL(str(native.library()))
    x, w = np.ones((1, 40), np.float32), np.ones((1, 40), np.uint16)
    out = np.zeros((1, 1), np.float32)
    x_at, w_at, out_at = (ctypes.c_void_p(array.ctypes.data) for array in (x, w, out))
    size = ctypes.c_size_t
    made = library.vlmc_linear_exact(x_at, size(1), size(40), w_at, size(1), out_at, size(1))
    assert (made, out.item()) == (0, 0)
