"""Molmo 2: what its processor writes around pictures, packed tensors, and what is refused."""

import json

import numpy as np
import pytest

from tests.build.oracle import make_processor
from tests.build.questions import QUESTIONS
from tests.checkpoints.pooled import molmo2
from vlmc.errors import VlmcError
from vlmc.families import by_model_type
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint
from vlmc.passes.checkpoint import read_rows
from vlmc.passes.checkpoint_index import read_index
from vlmc.passes.generation import read_generation
from vlmc.passes.load import load
from vlmc.runtime.images import prepare
from vlmc.runtime.prompt import PromptBuilder
from vlmc.sources import read_checkpoint

FAMILY = by_model_type("molmo2")
IMAGES = {"image_processor_type": "Molmo2ImageProcessor"}


def config(*, tower=None, adapter=None, text=None):
    return {
        "model_type": "molmo2",
        "text_config": {"hidden_size": 64, "num_attention_heads": 8, **(text or {})},
        "vision_config": {"model_type": "molmo2_vision", **(tower or {})},
        "adapter_config": {"text_hidden_size": 64, **(adapter or {})},
    }


def facts(config, processor=None, words=None, **images):
    return FAMILY.facts(Checkpoint(config, processor or {}, {**IMAGES, **images}, {}, words or {}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return molmo2(tmp_path_factory.mktemp("molmo2") / "model")


FLAGS = [
    {},
    {"use_single_crop_col_tokens": False},
    {"image_use_col_tokens": False, "use_single_crop_start_token": False},
    {"image_use_col_tokens": False, "use_single_crop_col_tokens": True},
]


@pytest.mark.parametrize("first", [None, "<|endoftext|>", "<|im_start|>"])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_prompts_are_those_of_the_processor(saved, tmp_path, flags, first):
    for path in saved.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    named = {"processor_class": "Molmo2Processor", **flags}
    (tmp_path / "processor_config.json").write_text(json.dumps(named))
    words = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if first is not None:
        words["bos_token"] = first
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    read = read_checkpoint(tmp_path)
    found = FAMILY.facts(read)
    spec, files = read_prompt(
        tmp_path,
        None,
        found.image_token_id,
        found.token_ids,
        plain_image=FAMILY.plain_image,
        image_layout=found.image_layout,
        opening=found.opening,
        opening_once=found.opening_once,
    )
    (tmp_path / "out").mkdir()
    load(spec, files, found.images, read_generation({}, {}), tmp_path / "out")
    ours, theirs = PromptBuilder.load(tmp_path / "out"), make_processor(tmp_path)
    for question in ("no image", "three images"):
        asked = QUESTIONS[question]
        pictures = asked.pictures()
        prompt = ours.build(asked.messages, [prepare(one, found.images) for one in pictures])
        waiting = iter(pictures)
        filled = [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": next(waiting)} if part["type"] == "image" else part
                    for part in message["content"]
                ],
            }
            for message in asked.messages
        ]
        inputs = theirs.apply_chat_template(
            filled,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="np",
        )
        assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
        # Marks around a picture count as it does.
        (mask,) = found.masks
        seen = np.zeros(len(prompt.token_ids), bool)
        for span in prompt.spans:
            seen[span.start - mask.marks[0] : span.start + span.length + mask.marks[1]] = True
        assert seen.tolist() == (inputs["mm_token_type_ids"][0] == 1).tolist()
        for span, picture in zip(prompt.spans, pictures, strict=True):
            assert span.length + sum(mask.marks) == found.image_tokens(
                picture.height, picture.width
            )


def test_packed_tensors_are_taken_apart_and_tables_joined(saved):
    import torch
    from transformers import Molmo2ForConditionalGeneration

    read = read_checkpoint(saved, tokenizer=False)
    index = FAMILY.tensors(read_index(saved), FAMILY.facts(read))
    model = Molmo2ForConditionalGeneration.from_pretrained(saved)
    decoder = model.model.language_model
    attention, feed = decoder.layers[1].self_attn, decoder.layers[1].mlp
    prefix = "model.transformer.blocks.1"
    expected = {
        "model.transformer.embed_tokens.weight": decoder.embed_tokens.weight,
        f"{prefix}.mlp.up_proj.weight": feed.up_proj.weight,
        f"{prefix}.mlp.gate_proj.weight": feed.gate_proj.weight,
    }
    for leaf in ("q_proj", "k_proj", "v_proj"):
        expected[f"{prefix}.self_attn.{leaf}.weight"] = getattr(attention, leaf).weight
        expected[f"{prefix}.self_attn.{leaf}.bias"] = getattr(attention, leaf).bias
    for name, value in expected.items():
        ref = index[name]
        assert ref.shape == tuple(value.shape)
        assert torch.equal(torch.from_numpy(read_rows(ref, 0, ref.shape[0])), value.detach())
    table = index["model.transformer.embed_tokens.weight"]
    middle = table.parts[0].shape[0]
    for start, stop in ((0, 2), (middle - 2, middle + 3), (middle, middle + 1), (middle, middle)):
        rows = torch.from_numpy(read_rows(table, start, stop))
        assert torch.equal(rows, decoder.embed_tokens.weight[start:stop].detach())
    assert not any("att_proj" in name or "ff_proj" in name for name in index)


def test_a_packed_tensor_of_another_size_is_refused(saved):
    read = read_checkpoint(saved, tokenizer=False)
    read.config["text_config"]["num_key_value_heads"] = 1
    with pytest.raises(VlmcError, match=r"has 128 rows, and the configuration makes it 64 \+ 16"):
        FAMILY.tensors(read_index(saved), FAMILY.facts(read))


def test_old_names_of_a_towers_sizes():
    new = config(tower={"image_size": [28, 28], "patch_size": 7, "num_hidden_layers": 5})
    old = config(adapter={"vit_layers": [-2, 0]})
    del old["vision_config"]
    old["vit_config"] = {"image_default_input_size": [28, 28], "image_patch_size": 7}
    old["vit_config"] |= {"image_num_pos": 16, "num_hidden_layers": 6}
    new["adapter_config"]["vision_feature_layer"] = [4, 0]
    given = {"size": {"height": 28, "width": 28}, "patch_size": 7, "overlap_margins": [1, 1]}
    first, second = (facts(one, **given) for one in (new, old))
    assert first.images == second.images
    assert first.weights == second.weights


@pytest.mark.parametrize(
    ("given", "processor", "images", "message"),
    [
        (config(tower={"image_size": [378, 364]}), {}, {}, "is no square"),
        (config(tower={"num_position_embeddings": 700}), {}, {}, "700 positions for 27 x 27"),
        (config(tower={"patch_size": 9}), {}, {}, "the processor says 14, the vision tower 9"),
        (config(adapter={"text_hidden_size": 48}), {}, {}, "makes rows of 48, .* takes 64"),
        (config(adapter={"vision_feature_layer": [25]}), {}, {}, "are not layers of 25"),
        (config(adapter={"vision_feature_layer": 3}), {}, {}, "not a list of layers"),
        (config(), {"image_use_col_tokens": 1}, {}, "neither true nor false"),
        (config(), {}, {"resample": 3}, "bilinear"),
        (config(), {}, {"do_rescale": False}, "bytes cannot be normalized"),
        (config(), {}, {"overlap_margins": [14, 13]}, "leave nothing of a crop"),
        (config(), {}, {"size": {"height": 364, "width": 364}}, "364 x 364 pixels"),
    ],
)
def test_what_cannot_work_is_refused(given, processor, images, message):
    with pytest.raises(VlmcError, match=message):
        facts(given, processor, **images)


def test_weights_are_counted(saved):
    from transformers import Molmo2ForConditionalGeneration

    counted = FAMILY.facts(read_checkpoint(saved, tokenizer=False)).weights
    model = Molmo2ForConditionalGeneration.from_pretrained(saved)
    tower = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
    ]
    assert counted.vision == pytest.approx(sum(p.numel() for p in tower), rel=0.05)
    assert counted.embedding == model.get_input_embeddings().weight.numel()
    assert counted.head == model.lm_head.weight.numel()
