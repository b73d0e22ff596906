"""What is read from a Granite Docling checkpoint's JSON, against transformers' own."""

from pathlib import Path

import pytest
from PIL import Image

from tests.checkpoints.kin import granite_docling
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["granite-docling"]
IMAGES: Json = {"image_processor_type": "GraniteDoclingImageProcessorFast"}


def facts(images: Json | None = None, *, bound: int | None = None, **tower: object) -> ModelFacts:
    config: Json = {"vision_config": tower}
    bounds = {} if bound is None else {"max_tiles": bound}
    return FAMILY.facts(Checkpoint(config, {}, IMAGES | (images or {}), {}, {}, bounds))


def test_a_saved_checkpoint_is_read_and_seen_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = granite_docling(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    given = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        features, deep = FAMILY.vision(model)(given)
        expected = model.model.get_image_features(given[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(features, expected.pooler_output[0])
    torch.testing.assert_close(deep, torch.stack([d[0] for d in expected.deepstack_features], 1))
    assert FAMILY.decoder(model) is model.model.text_model
    assert found.deepstack == (1, 2)
    assert found.weights is not None
    unused = ("connector.fine",)
    parts = model.model.vision_model.named_parameters()
    real = sum(p.numel() for name, p in parts if not name.startswith(unused))
    assert found.weights.vision == pytest.approx(real, rel=0.1)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    marks = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    processor.tokenizer.add_tokens([*marks, "\n\n"])
    for width, height in ((28, 28), (60, 60), (170, 30), (30, 90), (56, 84)):
        asked = {"images": [Image.new("RGB", (width, height))], "text": "<image>"}
        ids = processor(**asked, return_tensors="np")["input_ids"][0]
        # Less the tokenizer's first token, and two line breaks that may be one token.
        assert len(ids) - 1 <= found.image_tokens(height, width) <= len(ids)
    assert found.min_image_tokens == 4 + 3


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import GraniteDoclingConfig

    made, found = GraniteDoclingConfig(), facts()
    assert found.image_token_id == made.image_token_id
    assert found.text.vocab == made.text_config.vocab_size
    assert found.deepstack == (1, 2, 3)
    assert found.images.options["max_tiles"] == 32
    assert found.weights is not None
    assert found.weights.head == 0


@pytest.mark.parametrize("most", [1, 6, 32, 40])
def test_grids_equal_transformers_on_every_shape(most: int) -> None:
    from transformers import GraniteDoclingImageProcessorPil

    rule = {"dense_max_patches": 44, "dense_max_scale": 0.5, "dense_min_aspect": 1.3}
    for named in ({}, rule, rule | {"dense_max_scale": 0.0, "dense_max_aspect": 4.0}):
        settings = {"max_patches": most, **named}
        theirs = GraniteDoclingImageProcessorPil(**settings)
        found = facts(settings)
        for width in (1, 40, 512, 700, 3000, 9000):
            for height in (1, 33, 512, 800, 2900):
                rows, columns = theirs.get_tile_grid(height, width)
                cuts = rows * columns
                tokens = (cuts + (cuts > 1)) * 64 + rows * (2 * columns + 1)
                expected = tokens + (4 if cuts > 1 else 0)
                assert found.image_tokens(height, width) == expected, (height, width, settings)


@pytest.mark.parametrize(
    ("images", "tower", "message"),
    [
        ({"fine_route": True}, {}, "fine route of the connector is not supported"),
        ({"size": {"height": 256, "width": 512}}, {}, "tiles of 256 pixels, the tower takes 512"),
        ({"dense_max_patches": 9, "dense_min_aspect": "x"}, {}, "'x' is no number"),
        ({}, {"scale_factor": 3}, "do not divide into squares of 3"),
        ({}, {"out_hidden_size": 8}, "features have 8 numbers, the decoder's 1024"),
        ({}, {"image_size": 256}, "'image_seq_len' is 64, the connector makes 16"),
        ({}, {"deepstack_visual_indexes": 3}, "3 is not a list of layers"),
    ],
)
def test_what_cannot_be_served_is_refused(images: Json, tower: Json, message: str) -> None:
    with pytest.raises(VlmcError, match=message):
        facts(images, **tower)


def test_a_bound_on_tiles_and_pages_of_more_exclude_each_other() -> None:
    wide = {"dense_max_patches": 40, "dense_min_aspect": 1.3}
    assert facts(bound=7).images.options["max_tiles"] == 7
    with pytest.raises(VlmcError, match="wide pages cut into up to 40 tiles"):
        facts(wide, bound=7)
