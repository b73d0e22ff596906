"""HunYuan-VL: its JSON, its positions, its pictures' rows and marks, against transformers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.build.questions import picture
from tests.checkpoints.hunyuan import hunyuan_vl
from vlmc.bundle.manifest import PositionSpec
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.positions import position_axes, prompt_positions
from vlmc.runtime.types import ImageSpan, PreparedImage, Prompt
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["hunyuan-vl"]
IMAGES: Json = {"image_processor_type": "HunYuanVLImageProcessor"}
ROTARY: Json = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [16, 16, 16, 16]}


def facts(config: Json, images: Json | None = None, processor: Json | None = None) -> ModelFacts:
    config = {"text_config": {"rope_parameters": ROTARY}, **config}
    return FAMILY.facts(Checkpoint(config, processor or {}, IMAGES | (images or {}), {}, {}))


def made(*pieces: int | tuple[int, int]) -> Prompt:
    """A prompt of texts (their lengths) and images (feature rows and columns)."""
    ids: list[int] = []
    spans, images = [], []
    for piece in pieces:
        if isinstance(piece, int):
            ids += [1] * piece
            continue
        rows, columns = piece
        count = rows * (columns + 1) + 2
        spans.append(ImageSpan(len(ids), count, len(images)))
        images.append(PreparedImage({}, count, (1, rows, columns)))
        ids += [7] * count
    return Prompt(np.array(ids), np.array(ids), tuple(spans), tuple(images))


@pytest.mark.parametrize("axes", [3, 4])
@pytest.mark.parametrize(
    "pieces", [(5,), (3, (2, 3), 4), (1, (1, 1), 1, (4, 2), 2), ((1, 9), 1)], ids=str
)
def test_positions_are_transformers(axes: int, pieces: tuple[int | tuple[int, int], ...]) -> None:
    import torch
    from transformers import HunYuanVLModel

    prompt = made(*pieces)
    text = SimpleNamespace(rope_parameters={"mrope_section": [2] * axes})
    tower = SimpleNamespace(spatial_merge_size=2)
    model = SimpleNamespace(config=SimpleNamespace(text_config=text, vision_config=tower))
    model.get_vision_position_ids = HunYuanVLModel.get_vision_position_ids.__get__(model)
    ids = torch.from_numpy(prompt.token_ids)[None]
    grids = [[1, 2 * image.grid[1], 2 * image.grid[2]] for image in prompt.images]
    grid = torch.tensor(grids) if grids else None
    expected, delta = HunYuanVLModel.get_rope_index(model, ids, (ids == 7).int(), grid)
    spec = PositionSpec(scheme="xdrope", options={"axes": axes})
    found, following = prompt_positions(prompt, spec)
    assert np.array_equal(found, expected[:, 0].numpy())
    assert following == int(delta) + len(prompt.token_ids)
    assert position_axes(spec) == axes


def test_an_image_that_does_not_fit_its_span() -> None:
    prompt = made(3, (2, 3), 4)
    [span] = prompt.spans
    short = Prompt(
        prompt.token_ids,
        prompt.feature_index,
        (ImageSpan(span.start, span.length - 1, 0),),
        prompt.images,
    )
    with pytest.raises(VlmcError, match="2 x 3 feature rows has 9 tokens"):
        prompt_positions(short, PositionSpec(scheme="xdrope", options={"axes": 4}))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_features_are_transformers(tmp_path: Path, mode: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = hunyuan_vl(tmp_path, tower={"interpolate_mode": mode})
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    vision = FAMILY.vision(model)
    for size in ((97, 31), (30, 90), (64, 64)):
        shown = picture(*size)
        given = processor.image_processor([shown], return_tensors="pt")
        with torch.no_grad():
            [expected] = model.get_image_features(**given, return_dict=True).pooler_output
            tensors = prepare(shown, found.images).tensors.values()
            torch.testing.assert_close(vision(*map(torch.from_numpy, tensors)), expected)
        assert len(expected) == found.image_tokens(size[1], size[0]) >= found.min_image_tokens
    assert found.weights is not None
    real = sum(p.numel() for p in model.model.vision_tower.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.05)


def test_a_flat_configuration_in_older_words() -> None:
    import transformers as hf

    flat: Json = {
        "attention_head_dim": 96,
        "org_vocab_size": 500,
        "hidden_size": 192,
        "num_attention_heads": 4,
        "rope_scaling": {"type": "xdrope", "xdrope_section": [16, 16, 16], "alpha": 9.0}
        | {"factor": 1.0},
    }
    found = facts({"text_config": None, **flat})
    text = hf.HunYuanVLConfig(**flat).text_config
    assert (found.text.head_dim, found.text.vocab) == (text.head_dim, text.vocab_size) == (96, 500)
    assert found.positions.options == {"axes": len(text.rope_parameters["mrope_section"])}


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import transformers as hf

    config, found = hf.HunYuanVLConfig(), facts({})
    assert found.image_token_id == config.image_token_id
    assert found.text.layers == config.text_config.num_hidden_layers
    assert found.weights is not None
    assert found.weights.head == 0
    side = config.vision_config.max_image_size // config.vision_config.patch_size
    assert found.images.options["table"] == {"side": side, "taps": 2, "centers": "halves"}


@pytest.mark.parametrize(
    ("config", "images", "processor", "expected"),
    [
        ({"text_config": {}}, {}, {}, "'mrope_section' is None: pictures need three axes"),
        ({"text_config": {"rope_parameters": 3}}, {}, {}, "3 is not a mapping"),
        ({"vision_config": {"interpolate_mode": "area"}}, {}, {}, "'interpolate_mode' is 'area'"),
        ({"vision_config": {"temporal_patch_size": 2}}, {}, {}, "'temporal_patch_size' is 2"),
        ({"vision_config": {"patch_size": 14}}, {}, {}, "the tower's patch_size is 14"),
        ({}, {"spatial_patch_size": 2}, {}, "the processor counts other tokens"),
        ({}, {}, {"cat_extra_token": False}, "counts no tokens before and behind a picture"),
    ],
)
def test_variants_that_are_refused(
    config: Json, images: Json, processor: Json, expected: str
) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config, images, processor)
