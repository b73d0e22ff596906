"""What attention of our kernels refuses, and what it says of its answer before it runs."""

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.attention import CACHED, TOWER, asked, seen_by_tower, session
from tests.backends.kernels import with_kernels


@with_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 3, 95)}, r"query is \[2, 3, 95\], for 4 heads"),
        ({"query": (2, 3, 0)}, r"query is \[2, 3, 0\], for 4 heads"),
        ({"query": (6, 96)}, r"query is \[6, 96\], not of rank 3"),
        ({"key": (2, 3, 96)}, r"key is \[2, 3, 96\], not \[2, 3, 48\]"),
        ({"value": (2, 2, 48)}, r"value is \[2, 2, 48\], not \[2, 3, 48\]"),
        ({"past_key": (2, 2, 8, 32)}, r"past_key is \[2, 2, 8, 32\], not \[2, 2, 8, 24\]"),
        ({"past_key": (2, 48, 8)}, r"past_key is \[2, 48, 8\], not of rank 4"),
        ({"past_value": (2, 2, 9, 24)}, r"past_value is \[2, 2, 9, 24\], not \[2, 2, 8, 24\]"),
        ({"past_value": (1, 2, 8, 24)}, r"past_value is \[1, 2, 8, 24\], not"),
        ({"lengths": (1,)}, r"lengths is \[1\], not \[2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    feeds = asked([3, 5], 3, 8, 4, 2, 24)
    feeds |= {name: np.ones(shape, feeds[name].dtype) for name, shape in change.items()}
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2, "softcap": 0.0}
    heads |= {"window": 0, "rounded": 0}
    loose = session("CachedAttention", dict.fromkeys(CACHED), **heads)
    with pytest.raises(state.InvalidArgument, match=message):
        loose.run(None, feeds)


@with_kernels
@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (2, 1, 4, 5), (3, 1, 5, 5), (1, 3, 5, 5), (5, 5)])
def test_a_bias_that_does_not_fit_is_refused(shape):
    feeds = seen_by_tower(2, 5, 4, 2, 24) | {"bias": np.ones(shape, np.float32)}
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2}
    loose = session("TowerAttention", dict.fromkeys(TOWER), **heads)
    with pytest.raises(state.InvalidArgument, match="bias is"):
        loose.run(None, feeds)


@with_kernels
@pytest.mark.parametrize(
    "change", [{"kv_num_heads": 3}, {"num_heads": 0}, {"kv_num_heads": -2}, {"window": -1}]
)
def test_attributes_that_make_no_sense_are_refused(change):
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2, "softcap": 0.0}
    heads |= {"window": 0, "rounded": 0}
    with pytest.raises(state.RuntimeException, match=r"num_heads is|window is"):
        session("CachedAttention", dict.fromkeys(CACHED), **heads | change)


@with_kernels
@pytest.mark.parametrize(
    ("shape", "inferred"),
    [
        (["B", "S", 96], ["B", "S", 96]),
        ([2, "S", 96], [2, "S", 96]),
        ([None, "S", 96], []),
        ([], []),
    ],
)
def test_the_shape_of_the_answer_is_inferred_where_it_is_known(shape, inferred):
    """What has neither size nor name is left open, and runs."""
    shapes = dict.fromkeys(TOWER[:3], shape or None)
    made = session("TowerAttention", shapes, num_heads=4, kv_num_heads=4, scale=0.2)
    [y] = made.get_outputs()
    assert y.shape == inferred
    feeds = seen_by_tower(2, 5, 4, 4, 24)
    assert made.run(None, feeds)[0].shape == (2, 5, 96)
