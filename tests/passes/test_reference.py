"""transformers' processor of a checkpoint, where it cannot be made."""

from pathlib import Path

import pytest

from tests.checkpoints.native import glm4v
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.passes.reference import make_processor
from vlmc.sources import read_checkpoint


def test_a_processor_that_nothing_names_is_refused(tmp_path: Path) -> None:
    folder = glm4v(tmp_path / "model", kind="Glmga")
    images = FAMILIES["glm4v"].facts(read_checkpoint(folder)).images
    assert type(make_processor(folder, images)).__mro__[1].__name__ == "Glm46VProcessor"
    (folder / "processor_config.json").unlink()
    with pytest.raises(VlmcError, match="no file names its class"):
        make_processor(folder, images)
