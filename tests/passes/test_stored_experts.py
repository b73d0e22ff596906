"""Experts stored one by one are read as one tensor a layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlmc.passes.checkpoint import read_rows
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.stored_experts import stack_experts

EXPERTS, INNER, HIDDEN = 11, 3, 4


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_experts_are_stacked_in_the_order_of_their_numbers(
    names: tuple[str, str, str], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(1)
    shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
    held = {
        f"layers.0.mlp.experts.{expert}.{name}.weight": random.normal(size=shape).astype("f4")
        for expert in range(EXPERTS)
        for name, shape in zip(names, shapes, strict=True)
    }
    save_file({**held, "other": np.ones(2, "f4")}, tmp_path / "model.safetensors")

    index = stack_experts(read_index(tmp_path))

    layer = "layers.0.mlp.experts"
    assert list(index) == [f"{layer}.down_proj", f"{layer}.gate_up_proj", "other"]
    gate, up, down = (
        np.stack([held[f"{layer}.{expert}.{name}.weight"] for expert in range(EXPERTS)])
        for name in names
    )
    joined = index[f"{layer}.gate_up_proj"]
    assert joined.shape == (EXPERTS, 2 * INNER, HIDDEN)
    assert joined.nbytes == gate.nbytes + up.nbytes
    whole = np.concatenate([gate, up], axis=1)
    np.testing.assert_array_equal(read_rows(joined, 0, EXPERTS), whole)
    np.testing.assert_array_equal(read_rows(joined, 9, 11), whole[9:])
    np.testing.assert_array_equal(read_rows(index[f"{layer}.down_proj"], 2, 5), down[2:5])


def test_a_layer_that_lacks_an_expert_stays_as_it_is(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    held = {f"experts.{expert}.w2.weight": np.ones((2, 2), "f4") for expert in (0, 2)}
    save_file(
        {f"mlp.{name}": value for name, value in held.items()}, tmp_path / "model.safetensors"
    )

    index = read_index(tmp_path)

    assert stack_experts(index) == index
