"""transformers itself over a checkpoint: its processor, its threads, and what it cannot do."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.checkpoints.fixed import llava
from tests.checkpoints.native import glm4v
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.processor import make_processor
from vlmc.passes.reference import Reference
from vlmc.sources import read_checkpoint


def test_a_processor_that_nothing_names_is_refused(tmp_path: Path) -> None:
    folder = glm4v(tmp_path / "model", kind="Glmga")
    images = FAMILIES["glm4v"].facts(read_checkpoint(folder)).images
    assert type(make_processor(folder, images)).__mro__[1].__name__ == "Glm46VProcessor"
    (folder / "processor_config.json").unlink()
    with pytest.raises(VlmcError, match="no file names its class"):
        make_processor(folder, images)


def test_a_processor_that_counts_other_features_is_a_mistake_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    """As for SigLIP, which has no class token, beside settings for CLIP."""
    folder = llava(tmp_path / "model", tower="siglip")
    path = folder / "processor_config.json"
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**said, "num_additional_image_tokens": 3}), encoding="utf-8")
    images = FAMILIES["llava"].facts(read_checkpoint(folder)).images
    reference = Reference(folder, read_index(folder), images, "<image>")
    shown = [{"type": "image"}, {"type": "text", "text": "What?"}]
    with pytest.raises(VlmcError, match="other tokens for a picture") as error:
        reference.answer([{"role": "user", "content": shown}], [Image.new("RGB", (40, 30))], 2)
    assert error.value.at == "processor_config.json"


@pytest.mark.parametrize(("share", "threads"), [(1.5, 2), (64, 3)])
def test_transformers_takes_no_more_threads_than_the_container_may_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, threads: int
) -> None:
    folder = llava(tmp_path / "model", tower="siglip")
    images = FAMILIES["llava"].facts(read_checkpoint(folder)).images
    monkeypatch.setattr("vlmc.passes.reference.processors", lambda: share)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Reference(folder, read_index(folder), images, "<image>")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
