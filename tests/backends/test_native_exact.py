"""Products of float32 with bfloat16: as near to the sum as float32 is."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.backends.kernels import Guarded, near, with_kernels
from vlmc.passes import exact_products

ROOT = Path(__file__).parents[2]
# Rows of x, columns, rows of w: one, whole tiles, tiles and a bit, more than stay near. By vectors
# everywhere: columns that fill no tile, and more of them than are packed at a time.
SIZES = [(1, 32, 1), (16, 64, 32), (33, 544, 47), (70, 1280, 65), (417, 96, 32)]
SIZES += [(1, 5, 1), (4, 40, 17), (50, 1031, 64), (9, 2090, 130)]


def numbers(m, k, n):
    random = np.random.default_rng(m)
    x = random.standard_normal((m, k)) * np.exp(3 * random.standard_normal((m, 1)))
    w = (random.standard_normal((n, k)) * 0.02).astype(np.float32)
    return x.astype(np.float32), (w.view(np.uint32) >> 16).astype(np.uint16)


def multiplied(x, w):
    out = np.full((len(x), len(w)), np.nan, np.float32)
    exact_products.multiply(x, w, out)
    return out


def check(found, x, w):
    weights = (w.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    near(found, x @ weights.T, 1e-6 * np.abs(x.astype(np.float64)) @ np.abs(weights).T)


@with_kernels
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_what_is_rounded_are_the_sums_alone(m, k, n):
    x, w = numbers(m, k, n)
    check(multiplied(x, w), x, w)


@with_kernels
@pytest.mark.parametrize("k", [1056, 1057])
def test_a_row_has_the_same_bits_alone_and_among_others(k):
    x, w = numbers(450, k, 70)
    whole = multiplied(x, w)
    for some in (slice(0, 1), slice(7, 90), slice(400, 450)):
        assert np.array_equal(multiplied(x[some], w), whole[some])
    wide = np.zeros((450, 100), np.float32)
    exact_products.multiply(x, w[:40], wide[:, 10:50])
    assert np.array_equal(wide[:, 10:50], whole[:, :40])
    assert not wide[:, :10].any()
    assert not wide[:, 50:].any()


@with_kernels
@pytest.mark.parametrize("k", [64, 65])
def test_what_is_no_number_stays_none(k):
    x, w = numbers(5, k, 3)
    x[1, 7], x[2, 40] = np.inf, np.nan
    w[:] |= 1  # no zeros
    found = multiplied(x, w)
    assert np.isinf(found[1]).all()
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[[0, 3, 4]]).all()


@with_kernels
@pytest.mark.parametrize(("m", "k", "n"), [(3, 32, 5), (17, 96, 33), (2, 33, 3), (7, 1025, 66)])
def test_nothing_is_read_or_written_beyond_the_arrays(m, k, n):
    held = [Guarded(array) for array in (*numbers(m, k, n), np.zeros((m, n), np.float32))]
    x, w, out = (one.array for one in held)
    exact_products.multiply(x, w, out)
    assert np.array_equal(out, multiplied(np.array(x), np.array(w)))
    for one in held:
        one.release()


@with_kernels
def test_whole_tiles_where_tiles_are_turned_off(tmp_path):
    x, w = numbers(70, 1280, 65)
    np.savez(tmp_path / "given.npz", x=x, w=w)
    code = f"""
import numpy as np
from {__name__} import multiplied
given = np.load({str(tmp_path / "given.npz")!r})
np.save({str(tmp_path / "made.npy")!r}, multiplied(given["x"], given["w"]))
"""
    environment = os.environ | {"VLMC_TILES": "off"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=ROOT)
    check(np.load(tmp_path / "made.npy"), x, w)


@with_kernels
def test_other_weights_have_none_nor_has_who_turns_kernels_off():
    assert exact_products.can_multiply("BF16")
    assert not exact_products.can_multiply("F16")
    code = "from vlmc.passes.exact_products import can_multiply as can; print(can('BF16'))"
    environment = os.environ | {"VLMC_KERNELS": "off"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
