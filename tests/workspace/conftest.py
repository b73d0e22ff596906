import pytest

from tests.workspace.passes import Passes


@pytest.fixture
def passes(tmp_path):
    return Passes(tmp_path / "cache")
