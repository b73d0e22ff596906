"""Tests of one checkpoint are one group, whichever words stand beside its name."""

import pytest

from tests.build.variants import SPECIAL, VARIANTS
from tests.checkpoints import MAKERS
from tests.schedule import group_of


@pytest.mark.parametrize("name", [*MAKERS, *VARIANTS, *SPECIAL])
def test_a_checkpoint_is_found_among_other_parameters(name):
    for given in (name, f"{name}-prefill-seq-len=7 split=single", f"single-{name}"):
        assert group_of(f"tests/build/test_any.py::test_it[{given}]") == name


@pytest.mark.parametrize("rest", ["test_it", "test_it[int8-2]", "test_it[internvls]"])
def test_others_are_grouped_by_file(rest):
    assert group_of(f"tests/build/test_any.py::{rest}") == "tests/build/test_any.py"


def test_only_builds_are_of_checkpoints():
    assert group_of("tests/families/test_any.py::test_it[internvl]") == "tests/families/test_any.py"
