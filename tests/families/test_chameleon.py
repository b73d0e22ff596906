"""Chameleon: what is read of a checkpoint, codes as transformers has them, prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.towerless import chameleon
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.passes.check import _error, _span
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PROMPT_FILE, PromptBuilder
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["chameleon"]
MAP: Json = {"<image>": 9, "IMGIMGBAZ": 4, "IMGIMGFZ": 7}
LOWEST = np.finfo(np.float32).min


def facts(processor: Json | None = None, images: Json | None = None, **changes: Any) -> ModelFacts:
    config = {"vocabulary_map": MAP, **changes}
    given = {"image_processor_type": "ChameleonImageProcessorFast", **(images or {})}
    return FAMILY.facts(Checkpoint(config, processor or {}, given, {}, {}))


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import ChameleonConfig

    whole, found = ChameleonConfig(vocabulary_map=MAP), facts()
    assert found.image_token_id == whole.image_token_id == 9
    assert (found.text.hidden, found.text.layers) == (whole.hidden_size, whole.num_hidden_layers)
    assert (found.text.vocab, found.text.kv_heads) == (whole.vocab_size, whole.num_key_value_heads)
    assert found.text.max_positions == whole.max_position_embeddings
    assert found.min_image_tokens == 1024
    assert found.image_tokens(10, 300) == 1026
    assert found.vision_inputs[0].shape == (1, 3, 512, 512)


@pytest.mark.parametrize(
    ("width", "height", "tokens"), [(20, 16, 20), (23, 19, 20), (16, 16, 16), (9, 31, 14)]
)
def test_pictures_of_any_size_become_codes_as_in_transformers(
    tmp_path: Path, width: int, height: int, tokens: int
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    folder = chameleon(tmp_path)
    read = read_checkpoint(folder)
    images = {**read.image_processor, "crop_size": {"height": height, "width": width}}
    processor = {**read.processor, "image_seq_length": tokens}
    found = FAMILY.facts(Checkpoint(read.config, processor, images, {}, {}))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    shape = [size for size in found.vision_inputs[0].shape if isinstance(size, int)]
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = model.model.get_image_features(given)
        features = FAMILY.vision(model)(given)
    assert len(set(made.image_tokens.tolist())) > 1
    torch.testing.assert_close(features, made.pooler_output[0])
    assert found.min_image_tokens == len(features)
    assert found.weights is not None
    codes = model.model.vqmodel
    parts = (codes.encoder, codes.quant_conv, codes.quantize)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert found.weights.vision == pytest.approx(real, rel=0.1)
    # A constant of the graph: what is ruled out must not depend on a tensor made while tracing.
    logits = torch.randn(2, found.text.vocab)
    ruled_out = FAMILY.logits(model, logits) if FAMILY.logits else logits
    tokens_of_codes = model.model.vocabulary_mapping.image_tokens
    wanted = logits.clone()
    wanted[:, tokens_of_codes] = torch.finfo(torch.float32).min
    assert torch.equal(ruled_out, wanted)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"processor": {"image_seq_length": 1000}}, "counts 1000 tokens .* makes 1024"),
        ({"images": {"do_center_crop": False}}, "would keep different sizes"),
        ({"vocabulary_map": None}, "no code has a token"),
        ({"vocabulary_map": {"<image>": 3, "IMGIMGKZ": 4}}, "'IMGIMGKZ' names no code"),
        ({"vocabulary_map": {"IMGIMGAZ": 4}}, "'<image>' is missing"),
        ({"vocabulary_map": {"<image>": 3, "IMGIMGAZ": -4}}, "'IMGIMGAZ' is -4"),
        ({"vq_config": {"double_latent": True}}, "'double_latent' is True"),
        ({"vq_config": {"in_channels": 1}}, "'in_channels' is 1"),
        ({"vq_config": {"channel_multiplier": 4}}, "no list of numbers"),
    ],
)
def test_variants_that_are_refused(given: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(**given)


@pytest.mark.parametrize(
    "named",
    [
        {"sep_token": "<reserved08706>"},
        {"boi_token": "<reserved08706>", "eoi_token": "<unk>", "image_token": "<image>"},
    ],
)
def test_prompts_are_those_of_the_processor(tmp_path: Path, named: dict[str, str]) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    folder = chameleon(tmp_path / "model", named=named)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    found = FAMILY.facts(read_checkpoint(folder))
    spec, files = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=FAMILY.plain_image,
        image_layout=found.image_layout,
        closing=found.closing,
    )
    bundle = tmp_path / "bundle"
    (bundle / "processor").mkdir(parents=True)
    for name, data in files.items():
        (bundle / "processor" / name).write_bytes(data)
    (bundle / PROMPT_FILE).write_text(spec.model_dump_json())
    builder = PromptBuilder.load(bundle)
    pictures = [Image.new("RGB", (40, 60)), Image.new("RGB", (61, 20))]
    image: Json = {"type": "image"}
    for words in ("What is it? ", "", " None"):
        for shown in (pictures[:0], pictures[:1], pictures):
            content = [*(image for _ in shown), {"type": "text", "text": words}]
            text = "<image>" * len(shown) + words
            wanted = processor(text=text, images=shown or None)["input_ids"][0].tolist()
            prompt = builder.build(
                [{"role": "user", "content": content}], [prepare(p, found.images) for p in shown]
            )
            assert prompt.token_ids.tolist() == wanted


def test_tokens_that_are_ruled_out_count_as_equal_and_must_stay_ruled_out() -> None:
    expected = np.array([[1.0, 3.0, LOWEST], [2.0, 1.0, LOWEST]], np.float32)
    assert _span(expected) == 2.0
    assert _error(expected + np.float32([0, 0.5, 0]), expected) == 0.25
    with pytest.raises(VlmcError, match="rules out"):
        _error(np.where(expected == LOWEST, np.float32(0), expected), expected)
