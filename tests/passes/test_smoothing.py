"""Factors take the error of outlier channels away, and leave plain layers alone."""

import numpy as np
import pytest
import torch  # noqa: F401  what is tested multiplies by it: left out where it is absent

from vlmc.passes.scaling import Fold
from vlmc.passes.smoothing import Seen, smooth

TOKENS, WIDTH, ROWS = 96, 896, 256
OUTLIERS = [3, 200, 700]


def layer(seed=0):
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((TOKENS, WIDTH)).astype(np.float32),
        random.standard_normal((ROWS, WIDTH)).astype(np.float32),
    )


def seen(tokens):
    size = np.sqrt(np.square(tokens).mean(axis=1, keepdims=True))
    return Seen((np.abs(tokens) / size).mean(axis=0), tokens)


def solve(tokens, weight, form="int8_channel", fold=None):
    fold = fold or Fold((), (), 1, 1, tokens.shape[1])
    return smooth(fold, seen(tokens), [weight], form, 32)


@pytest.mark.parametrize("form", ["int8_channel", "int4_block"])
def test_a_layer_without_outliers_stays_as_it_is(form):
    found = solve(*layer(), form)
    assert not found.exponents.any()
    assert found.after == found.before


def test_one_odd_token_is_no_outlier_channel():
    tokens, weight = layer()
    tokens[0, 5] = 1000
    assert not solve(tokens, weight).exponents.any()


@pytest.mark.parametrize(("factor", "least"), [(30, 3), (100, 5)])
def test_outliers_share_their_range_with_the_weights(factor, least):
    tokens, weight = layer()
    tokens[:, OUTLIERS] *= factor
    found = solve(tokens, weight)
    assert np.flatnonzero(found.exponents).tolist() == OUTLIERS
    assert found.after < found.before / least


@pytest.mark.parametrize("form", ["int8_channel", "int4_block"])
def test_outliers_that_small_weights_make_up_for_vanish(form):
    tokens, weight = layer()
    plain = solve(tokens, weight, form).before
    tokens[:, OUTLIERS] *= 100
    weight[:, OUTLIERS] /= 100
    found = solve(tokens, weight, form)
    assert found.before > 1.4 * plain
    assert found.after < 1.1 * plain


def test_heads_that_share_a_channel_share_its_factor():
    tokens, weight = layer()
    wide = tokens.reshape(TOKENS, 2, 4, WIDTH // 8)
    wide[:, 1, :, 7] *= 50
    fold = Fold((), (), heads=2, group=4, size=WIDTH // 8)
    found = solve(tokens, weight, fold=fold)
    assert np.flatnonzero(found.exponents).tolist() == [WIDTH // 8 + 7]
    assert found.after < found.before / 2


def test_dead_channels_and_silent_layers_change_nothing():
    tokens, weight = layer()
    tokens[:, 10] = 0
    weight[:, 11] = 0
    assert not solve(tokens, weight).exponents.any()
    silent = Seen(np.zeros(WIDTH), np.zeros_like(tokens))
    found = smooth(Fold((), (), 1, 1, WIDTH), silent, [weight], "int8_channel", 32)
    assert (found.before, found.after) == (0.0, 0.0)
