"""What is read of a Qianfan-OCR checkpoint beyond what InternVL's tests cover."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.packed import unpacked
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.passes.checkpoint import TensorRef
from vlmc.schema import Json

FAMILY = FAMILIES["qianfan-ocr"]


def facts(processor: Json, **config: object) -> ModelFacts:
    images: Json = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": 448, "width": 448},
    }
    given: Json = {"model_type": "qianfan_ocr", **config}
    return FAMILY.facts(Checkpoint(given, processor, images, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import QianfanOCRConfig

    made, found = QianfanOCRConfig(), facts({})
    assert found.image_token_id == made.image_token_id
    assert found.text.layers == made.text_config.num_hidden_layers
    assert found.text.head_dim == made.text_config.head_dim
    assert found.min_image_tokens == made.image_seq_length
    assert found.weights is not None
    assert found.weights.head == found.text.vocab * found.text.hidden
    assert found.image_layout is not None
    assert found.image_layout.placeholder == "<image>"


@pytest.mark.parametrize("word", ["", 3, None])
def test_a_placeholder_is_text(word: object) -> None:
    with pytest.raises(VlmcError, match="is no placeholder for an image"):
        facts({"image_placeholder_token": word})


def test_another_tower_is_refused() -> None:
    with pytest.raises(VlmcError, match="'model_type' is 'internvl_vision'"):
        facts({}, vision_config={"model_type": "internvl_vision"})


def test_rows_that_are_packed_are_found_where_they_lie() -> None:
    ref = TensorRef("qkv", Path("a.safetensors"), "F32", (6, 5), 100, 120)
    found = unpacked(ref, [("q", 4), ("k", 1), ("v", 1)])
    assert [(x.shape, x.begin, x.nbytes) for x in found.values()] == [
        ((4, 5), 100, 80),
        ((1, 5), 180, 20),
        ((1, 5), 200, 20),
    ]
    with pytest.raises(VlmcError, match=r"'qkv' has 6 rows, and the configuration makes it 4 \+ 1"):
        unpacked(ref, [("q", 4), ("k", 1)])
