"""Whose fault it is, where code that is not ours raises."""

import pytest
from jinja2 import TemplateError

from vlmc.errors import VlmcError
from vlmc.passes.upstream import in_a_line, run_by_transformers


def asked_of_transformers():
    from transformers import AutoConfig

    AutoConfig.for_model("no such model")


def test_what_transformers_raises_is_said_in_a_line():
    with pytest.raises(VlmcError) as caught, run_by_transformers():
        asked_of_transformers()
    first, *hint = str(caught.value).splitlines()
    assert "could not run this checkpoint: ValueError: Unrecognized model identifier" in first
    assert "reference: off" in hint[0]
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("error", [VlmcError, TemplateError, ValueError, KeyboardInterrupt])
def test_what_is_not_transformers_own_stays_what_it_is(error):
    with pytest.raises(error) as caught, run_by_transformers():
        raise error("ours")
    assert type(caught.value) is error


def test_an_exception_in_a_line():
    assert in_a_line(ValueError("one\ntwo")) == "ValueError: one"
    assert in_a_line(MemoryError()) == "MemoryError"
