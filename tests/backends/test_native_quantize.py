"""Weights quantized by the compiled kernels: numpy's bytes, to the last bit."""

import numpy as np
import pytest

from tests.backends.kernels import call, with_kernels
from vlmc.passes.checkpoint import as_float32
from vlmc.quantizers import QUANTIZERS, Loss

NAMES = ("int4_block", "int4_panel", "int8_block", "int8_panel")


def halfway(rng, shape):
    """Whole codes of a scale that float16 has, and some halves: rounded as division rounds them."""
    codes = rng.integers(-8, 8, shape).astype(np.float64)
    for place, one in enumerate([-8, 7, *[1.5] * 3, *[2.3] * 5]):  # which leave the scale as it is
        codes[:, place::16] = one
    return codes * np.float16(rng.uniform(0.01, 0.02, (len(codes), 1)))


KINDS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape) * 0.02,
    "zeros": lambda rng, shape: np.zeros(shape),
    "positive": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "outliers": lambda rng, shape: rng.standard_t(2, shape),
    "ties": lambda rng, shape: rng.integers(-9, 9, shape) / 2,
    "halfway": halfway,
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-38,
    "huge": lambda rng, shape: rng.standard_normal(shape) * 1e34,
}


def lost(name, weight, arrays, block) -> Loss:
    restored = QUANTIZERS[name].restore(arrays, weight.shape[1], block)
    wrong = restored[: len(weight)] - weight
    squares = [float(np.square(v, dtype=np.float64).sum()) for v in (wrong, weight)]
    return Loss(*squares, float(np.abs(wrong).max()))


@with_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("name", NAMES)
def test_they_make_numpys_bytes(name, kind, block):
    rng = np.random.default_rng([block, len(kind)])
    for rows, columns in ((1, 1), (3, block), (2, block + 1), (17, 3 * block), (4, 700)):
        weight = KINDS[kind](rng, (rows, columns)).astype(np.float32)
        expected = QUANTIZERS[name].quantize(weight, block)
        found, loss = QUANTIZERS[name].measured(weight, block)
        for there, here in zip(expected, found, strict=True):
            assert (there.dtype, there.shape) == (here.dtype, here.shape)
            assert np.ascontiguousarray(there).tobytes() == here.tobytes()
        known = lost(name, weight, expected, block)
        assert loss.largest == known.largest
        np.testing.assert_allclose(
            (loss.error, loss.weight), (known.error, known.weight), rtol=1e-12
        )


@with_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 32, 256])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_read_as_the_float32_that_it_is(name, kind, block):
    rng = np.random.default_rng([block, len(kind)])
    for rows, columns in ((1, 1), (17, 3 * block), (4, 700), (33, block + 20)):
        weight = KINDS[kind](rng, (rows, columns)).astype(np.float32)
        stored = (weight.view(np.uint32) >> 16).astype(np.uint16)
        expected, known = QUANTIZERS[name].measured(as_float32(stored), block)
        found, loss = QUANTIZERS[name].measured(stored, block)
        assert loss == known
        for there, here in zip(expected, found, strict=True):
            assert (there.dtype, there.shape) == (here.dtype, here.shape)
            assert there.tobytes() == here.tobytes()


@with_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 32, 256])
def test_what_is_rounded_is_what_is_restored(kind, block):
    quantizer = QUANTIZERS["int4_panel"]
    rng = np.random.default_rng([block, len(kind)])
    for rows, columns in ((1, 1), (17, 3 * block), (4, 700), (33, block + 20)):
        weight = KINDS[kind](rng, (rows, columns)).astype(np.float32)
        expected = quantizer.restore(quantizer.quantize(weight, block), columns, block)[:rows]
        np.testing.assert_array_equal(quantizer.rounded(weight, block), expected)


@with_kernels
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_the_loss(name, bad):
    weight = np.random.default_rng(1).standard_normal((19, 70)).astype(np.float32)
    weight[18, 69] = bad
    assert not np.isfinite(QUANTIZERS[name].measured(weight, 32)[1].weight)


@with_kernels
@pytest.mark.parametrize("columns", [16, 17, 33, 100, 256])
def test_nothing_is_read_or_written_beyond_the_arrays(columns):
    """Each ends where memory begins that can't be touched."""
    weight = np.random.default_rng(1).standard_normal((3, columns)).astype(np.float32)
    restored = np.full(weight.shape, np.nan, np.float32)
    for block in (16, 32, 64, 128, 256):
        blocks = -(-columns // block)
        panels = [np.zeros((1, blocks, block // 8, 16, 4), np.uint8)]
        panels += [np.zeros((1, n, 16), t) for n, t in ((blocks, "f2"), (-(-blocks // 2), "u1"))]
        call("vlmc_round_blocks", weight, *weight.shape, block, *panels, np.zeros(3), restored)
        assert np.isfinite(restored).all()
        restored[:] = np.nan
        arrays = [np.zeros((3, blocks, block // 2), np.uint8), np.zeros((3, blocks), np.float16)]
        arrays.append(np.zeros((3, -(-blocks // 2)), np.uint8))
        wide = [np.zeros((3, blocks, block), np.uint8), arrays[1].copy(), None]
        for each in (arrays, wide):
            loss = np.zeros(3)
            call("vlmc_quantize_stored", weight, 0, *weight.shape, block, 0, *each, loss)
            assert loss[1] == pytest.approx(np.square(weight, dtype=np.float64).sum())
            halves = (weight.view(np.uint32) >> 16).astype(np.uint16)
            call("vlmc_quantize_stored", halves, 1, *weight.shape, block, 0, *each, loss)
            assert loss[1] == pytest.approx(np.square(weight, dtype=np.float64).sum(), rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_without_kernels_numpy_does_it(monkeypatch, name):
    monkeypatch.setenv("VLMC_KERNELS", "off")
    assert QUANTIZERS[name].measured(np.ones((2, 32), np.float32), 32) is None
    rounded = QUANTIZERS[name].rounded
    assert rounded is None or rounded(np.ones((2, 32), np.float32), 32) is None


@with_kernels
@pytest.mark.parametrize("name", NAMES)
def test_blocks_they_do_not_know_are_numpys(name):
    measured = QUANTIZERS[name].measured
    assert measured(np.ones((2, 512), np.float32), 512) is None
