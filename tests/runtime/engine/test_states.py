"""States of layers without keys and values: cleared, kept, moved with their slot."""

import numpy as np
import pytest

from vlmc.bundle.manifest import Limits, ProgramSpec, TensorSpec
from vlmc.errors import VlmcError
from vlmc.runtime.cache import Cache

LIMITS = Limits(prefill_seq_len=4, ctx_len=8, batch_size=3, max_images=1)


def program(*names, state=(5, 3)):
    states = dict.fromkeys(("state", "matrix"), ("batch", *state))
    shapes = {**states, "key": ("batch", 2, 8, 4), "value": ("batch", 2, 8, 4)}
    inputs, outputs = [], []
    for name in names:
        shape = shapes[name.partition(".")[0]]
        inputs.append(TensorSpec(name=f"past_{name}", dtype="float32", shape=shape))
        outputs.append(TensorSpec(name=f"present_{name}", dtype="float32", shape=shape))
    return ProgramSpec(file="p", weights=(), inputs=tuple(inputs), outputs=tuple(outputs))


def test_a_slot_starts_from_no_state_and_can_go_back_to_one():
    cache = Cache(program("state.0", "key.1", "value.1"), LIMITS)
    assert cache.recurrent
    cache.inputs(1, 2)["past_state.0"][:] = 7
    kept = cache.states(1)
    cache.inputs(1, 2)["past_state.0"][:] = 9
    assert kept["past_state.0"].tolist() == np.full((5, 3), 7.0).tolist()
    cache.restore(1, kept)
    assert (cache.inputs(0, 3)["past_state.0"][1] == 7).all()
    cache.restore(1, {})
    assert not cache.inputs(0, 3)["past_state.0"].any()
    # Written where it is read, and keys as ever.
    assert cache.outputs(1, 2)["present_state.0"] is cache.inputs(1, 2)["past_state.0"]
    assert cache.outputs(1, 2)["present_key.1"] is cache.inputs(1, 2)["past_key.1"]


def test_a_slot_moves_with_its_whole_state():
    cache = Cache(program("key.0", "value.0", "state.1"), LIMITS)
    held = cache.inputs(0, 3)
    held["past_key.0"][2], held["past_state.1"][2] = 4, 6
    cache.move(2, 0, 3)
    assert (held["past_state.1"][0] == 6).all()
    assert held["past_key.0"][0, :, :3].all()
    assert not held["past_key.0"][0, :, 3:].any()


def test_a_layer_may_have_states_of_two_kinds():
    cache = Cache(program("state.0", "matrix.0", "key.1", "value.1"), LIMITS)
    cache.inputs(1, 2)["past_matrix.0"][:] = 7
    kept = cache.states(1)
    assert kept.keys() == {"past_state.0", "past_matrix.0"}
    cache.move(1, 0, 4)
    cache.restore(1, {})
    assert (cache.inputs(0, 1)["past_matrix.0"] == 7).all()
    assert not cache.inputs(1, 2)["past_matrix.0"].any()
    cache.restore(1, kept)
    assert (cache.inputs(1, 2)["past_matrix.0"] == 7).all()


def test_caches_of_keys_alone_have_no_state():
    cache = Cache(program("key.0", "value.0"), LIMITS)
    assert not cache.recurrent
    assert cache.states(0) == {}
    assert cache.nbytes == 2 * 3 * 2 * 8 * 4 * 4


def test_a_state_has_a_known_size():
    with pytest.raises(VlmcError, match="not a cache of ctx-len"):
        Cache(program("state.0", state=("channels", 3)), LIMITS)
    assert Cache(program("state.0", state=(4,)), LIMITS).states(2)["past_state.0"].shape == (4,)


@pytest.mark.parametrize("most", [0, 128 << 20])
def test_buffers_lie_apart_in_large_pages_and_in_small_ones(monkeypatch, most):
    monkeypatch.setattr("vlmc.runtime.cache._LARGE_PAGES", most)
    cache = Cache(program("state.0", "key.1", "value.1", "key.2", "value.2"), LIMITS)
    buffers = cache.inputs(0, 3)
    for number, buffer in enumerate(buffers.values()):
        assert not buffer.any()
        assert buffer.ctypes.data % 16 == 0
        buffer[:] = number + 1
    for number, buffer in enumerate(buffers.values()):
        assert (buffer == number + 1).all()
    assert cache.nbytes == 4 * 3 * (15 + 4 * 64)
