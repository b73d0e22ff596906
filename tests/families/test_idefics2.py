"""Idefics2: what is read from its JSON, its tower and its prompts, against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.idefics2 import TEMPLATE, idefics2
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["idefics2"]
IMAGES: Json = {"image_processor_type": "Idefics2ImageProcessor"}


def facts(config: Json, images: Json | None = None, tokens: int = 64) -> ModelFacts:
    given = Checkpoint(config, {"image_seq_len": tokens}, IMAGES | (images or {}), {}, {})
    return FAMILY.facts(given)


def drawn(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


@pytest.mark.parametrize(
    ("split", "tower"), [(False, {}), (True, {"image_size": 70}), (False, {"image_size": 55})]
)
def test_filling_up_changes_no_features(tmp_path: Path, split: bool, tower: Json) -> None:
    """transformers fills pictures of one prompt up to one size; here each is seen alone."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = idefics2(tmp_path, split=split, tower=tower)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    pictures = drawn((97, 31), (30, 90), (64, 64), (24, 25), (200, 20))
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    together = processor.image_processor([pictures], return_tensors="pt")
    vision = FAMILY.vision(model)
    with torch.no_grad():
        [expected] = model.get_image_features(**together, return_dict=True).pooler_output
        made = [
            vision(*(torch.from_numpy(x) for x in prepare(one, found.images).tensors.values()))
            for one in pictures
        ]
    torch.testing.assert_close(torch.cat(made), expected)
    assert FAMILY.decoder(model) is model.model.text_model
    assert found.weights is not None
    parts = (model.model.vision_model, model.model.connector)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("side", [1, 4, 7, 16, 27, 70])
def test_patches_are_placed_where_transformers_places_them(side: int) -> None:
    import torch
    from transformers import Idefics2Config, Idefics2VisionConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

    from vlmc.families.idefics2_modules import ResampledFeatures
    from vlmc.runtime.images.quarters import _places

    sizes = Idefics2VisionConfig(image_size=side, patch_size=1, hidden_size=1)
    embeddings = Idefics2VisionEmbeddings(sizes)
    embeddings.position_embedding.weight.data = torch.arange(side * side)[:, None].float()
    embeddings.patch_embedding.weight.data.zero_()
    embeddings.patch_embedding.bias.data.zero_()
    whole = Idefics2Config(
        vision_config={"image_size": side, "patch_size": 1, "num_hidden_layers": 1},
        text_config={"num_hidden_layers": 1, "vocab_size": 9},
    )
    with torch.device("meta"):
        from transformers import Idefics2Model

        model = Idefics2Model(whole)
    ends = ResampledFeatures(model).tower.ends
    for rows, columns in ((side, side), (1, 71), (70, 3), (27, 54), (69, 35)):
        with torch.no_grad():
            mask = torch.ones(1, rows, columns, dtype=torch.bool)
            expected = embeddings(torch.zeros(1, 3, rows, columns), mask)[0, :, 0]
        bins = (torch.from_numpy(_places(rows, columns))[..., None] >= ends.cpu()).sum(-1)
        assert (bins[:, 0] * side + bins[:, 1]).tolist() == expected.int().tolist()


CONTENTS: dict[str, list[Any]] = {
    "words behind": [{"type": "image"}, "What is it?"],
    "space behind": [{"type": "image"}, " What", {"type": "image"}, "\nand"],
    "side by side": ["a", {"type": "image"}, {"type": "image"}, {"type": "image"}, "<b>"],
    "last": ["a", {"type": "image"}],
    "none": ["x"],
}


@pytest.mark.parametrize(
    ("split", "named"), [(False, None), (True, None), (True, {"image_boundary_token": "<edge>"})]
)
def test_prompts_equal_the_processors(
    tmp_path: Path, split: bool, named: dict[str, str] | None
) -> None:
    from transformers import AutoProcessor

    folder = idefics2(tmp_path, split=split, named=named)
    found = FAMILY.facts(read_checkpoint(folder))
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=FAMILY.plain_image,
        image_layout=found.image_layout,
        extra_tokens=FAMILY.extra_tokens,
    )
    bundle = folder / "bundle"
    (bundle / "processor").mkdir(parents=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
    builder = PromptBuilder.load(bundle)
    for name, content in CONTENTS.items():
        parts = [
            part if isinstance(part, dict) else {"type": "text", "text": part} for part in content
        ]
        pictures = drawn(*[(40, 30)] * content.count({"type": "image"}))
        waiting = iter(pictures)
        filled = [{**p, "image": next(waiting)} if p["type"] == "image" else p for p in parts]
        expected = processor.apply_chat_template(
            [{"role": "user", "content": filled}],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
        )["input_ids"][0]
        prepared = [prepare(picture, found.images) for picture in pictures]
        prompt = builder.build([{"role": "user", "content": parts}], prepared)
        assert prompt.token_ids.tolist() == list(expected), name
        assert (prompt.feature_index >= 0).sum() == sum(image.tokens for image in prepared)
        if name == "last":
            shown = found.image_tokens(30, 40)
            none = builder.build([{"role": "user", "content": parts[:1]}], [])
            assert len(prompt.token_ids) == shown + len(none.token_ids)
    # A text that spells a mark is text; an image beside it stays one.
    said: list[Json] = [{"type": "text", "text": "<fake_token_around_image>b <image>"}]
    content = [{"type": "image"}, *said]
    [picture] = drawn((40, 30))
    prompt = builder.build([{"role": "user", "content": content}], [prepare(picture, found.images)])
    text = builder.decode(prompt.token_ids.tolist(), skip_special_tokens=False)
    assert "<fake_token_around_image>b <image><end_of_utterance>" in text


def test_a_template_may_write_a_bare_mark() -> None:
    from vlmc.runtime.layout import join_edges

    assert join_edges("E!E!a E! bE!<c>E!", "E!") == "E! a E! bE!<c>E!"
    assert TEMPLATE.count("<image>") == 1


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    import torch
    import transformers as hf

    found = facts({})
    with torch.device("meta"):
        model = hf.Idefics2ForConditionalGeneration(hf.Idefics2Config())
    assert found.image_token_id == model.config.image_token_id
    assert found.min_image_tokens == found.image_tokens(500, 300) == 64 + 2
    assert found.text.max_positions == model.config.text_config.max_position_embeddings
    assert found.weights is not None
    real = sum(p.numel() for p in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.005)
    said = facts({"text_config": {}}).text.max_positions
    assert said == hf.Idefics2Config(text_config={}).text_config.max_position_embeddings
    quartered = facts({}, {"do_image_splitting": True})
    assert quartered.min_image_tokens == quartered.image_tokens(500, 300) == 5 * 65 + 1


@pytest.mark.parametrize(
    ("config", "images", "tokens", "expected"),
    [
        ({}, {}, 32, "'image_seq_len' is 32, the perceiver makes 64 tokens"),
        ({"vision_config": {"patch_size": 300}}, {}, 64, "'image_size' is 224, not a whole number"),
        ({}, {"size": {"shortest_edge": 30}}, 64, "cannot be resized by shortest_edge"),
        ({}, {"do_image_splitting": 3}, 64, "3 is neither true nor false"),
        ({"text_config": {"model_type": "mamba9"}}, {}, 64, "text model 'mamba9'"),
    ],
)
def test_variants_that_are_refused(config: Json, images: Json, tokens: int, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config, images, tokens)
