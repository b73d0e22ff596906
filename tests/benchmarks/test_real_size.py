"""Models at their published size become graphs, without weights and in little memory."""

import pytest

from tests.benchmarks.real_size import REAL_SIZE, measure

GIB_IN_MIB = 1024
# Nothing in their vision program attends, or not through the neutral node.
TOWERLESS = ("chameleon-7b", "fuyu-8b")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_SIZE)
def test_a_real_model_is_exported(name: str) -> None:
    found = measure(name)
    # The language graph has one attention node for each layer, in place of its many products.
    assert found["attention"]["language"] == found["layers"]
    assert found["attention"]["vision"] > 0 or name in TOWERLESS
    assert found["peak"] < 2 * GIB_IN_MIB
