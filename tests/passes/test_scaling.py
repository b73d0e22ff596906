import numpy as np
import pytest

from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.scaling import (
    Fold,
    Producer,
    Scaling,
    read_facts,
    read_folds,
    scalings,
    write_folds,
)
from vlmc.passes.weights import WeightJob, write_weights
from vlmc.quantizers import QUANTIZERS


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_factors_are_exact_and_undo_each_other():
    weight = random(6, 10)
    rows, columns = np.arange(-3, 3), np.arange(-5, 5)
    there = Scaling(rows, columns).apply(weight, 0)
    expected = weight.astype(np.float64) * 2.0 ** (columns - rows[:, None])
    np.testing.assert_array_equal(there, expected.astype(np.float32))
    np.testing.assert_array_equal(Scaling(-rows, -columns).apply(there, 0), weight)
    np.testing.assert_array_equal(Scaling(rows, columns).apply(weight[2:4], 2), there[2:4])


def test_what_the_graph_adds_is_scaled_too():
    weight = random(7, 1)
    there = Scaling(np.full(7, 3), offset=1.0).apply(weight, 0)
    np.testing.assert_allclose(1 + there, (1 + weight) / 8, rtol=1e-6)


def test_a_channel_read_by_several_heads_has_one_factor():
    fold = Fold((Producer("v"),), ("o",), heads=2, group=3, size=2)
    spread = fold.spread(np.array([1, 2, 3, 4]))
    assert spread.tolist() == [1, 2] * 3 + [3, 4] * 3
    assert (fold.channels, fold.columns) == (4, 12)


def test_factors_come_back_as_written_and_add_up(tmp_path):
    first = Fold((Producer("norm", offset=1.0),), ("q", "v"), 1, 1, 4)
    second = Fold((Producer("v"), Producer("packed", start=2)), ("o",), 2, 2, 1)
    folds = [(first, np.array([0, 5, 0, -2])), (second, np.array([0, 3]))]
    write_folds(tmp_path / "folds.json", folds, {"questions": 8})
    back = read_folds(tmp_path / "folds.json")
    assert [fold for fold, _ in back] == [first, second]
    assert [exponents.tolist() for _, exponents in back] == [[0, 5, 0, -2], [0, 3]]
    assert read_facts(tmp_path / "folds.json") == {"questions": 8}
    found = scalings(back, {"norm": 4, "q": 3, "v": 2, "packed": 6, "o": 4})
    assert found["norm"].rows.tolist() == [0, 5, 0, -2]
    assert (found["norm"].columns, found["norm"].offset) == (None, 1.0)
    assert found["v"].rows.tolist() == [0, 3]
    assert found["v"].columns.tolist() == [0, 5, 0, -2]
    assert found["packed"].rows.tolist() == [0, 0, 0, 3, 0, 0]
    assert found["o"].columns.tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize("name", ["fp32", "int8_channel", "int4_block"])
def test_weights_are_scaled_before_they_are_stored(tmp_path, name):
    from safetensors.numpy import save_file

    weight = random(24, 64)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    scaling = Scaling(np.arange(24) % 5 - 2, np.arange(64) % 7 - 3)
    jobs = [WeightJob("plain", ("w",), name), WeightJob("moved", ("w",), name, scaling=scaling)]
    table, _ = write_weights(jobs, read_index(tmp_path), tmp_path / "w.bin", block_bytes=1000)
    quantizer = QUANTIZERS[name]
    expected = quantizer.quantize(scaling.apply(weight, 0), 32)
    data = (tmp_path / "w.bin").read_bytes()
    for part, array in zip(quantizer.parts(24, 64, 32), expected, strict=True):
        stored = table["moved" + part.suffix]
        assert (
            data[stored.offset : stored.offset + stored.nbytes]
            == np.ascontiguousarray(array).tobytes()
        )
    assert table["plain"].offset != table["moved"].offset
