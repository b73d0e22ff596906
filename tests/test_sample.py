"""A sample has cases of every test, and of every value of a parameter that has many."""

import pytest

from tests.sample import one_in

CASES = [f"tests/a.py::test_it[{kind}-{size}]" for size in range(60) for kind in "pqrs"]


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_every_value_of_a_parameter_is_drawn(n):
    drawn = one_in(n, CASES)
    assert len(drawn) == len(CASES) // n
    assert {name.partition("[")[2][0] for name in drawn} == set("pqrs")


def test_few_cases_and_tests_without_are_kept():
    few = ["tests/a.py::test_one", *(f"tests/b.py::test_it[{i}]" for i in range(4))]
    assert one_in(4, few + CASES) >= set(few)
    assert len(one_in(3, few)) == 1 + 2


def test_one_in_one_is_all_of_them():
    assert one_in(1, CASES) == set(CASES)


def test_the_order_does_not_matter():
    assert one_in(4, CASES) == one_in(4, CASES[::-1])
