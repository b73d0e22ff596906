"""The build's memory is bounded by a block of weights, not by the model."""

from pathlib import Path

import pytest

from tests.benchmarks.build_memory import make_checkpoint, measure

GIB_IN_MIB = 1024


@pytest.mark.slow
def test_a_checkpoint_of_one_gib_builds_in_less_than_one_and_a_half(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model")
    found = measure(tmp_path, "int4")
    assert found["checkpoint"] > GIB_IN_MIB << 20
    assert found["build"] < 1.5 * GIB_IN_MIB
    assert found["check"] < 1.5 * GIB_IN_MIB
