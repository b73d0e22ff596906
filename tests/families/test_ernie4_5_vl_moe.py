"""ERNIE 4.5 VL: experts of two kinds, whose tokens they are, how they are stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.ernie import SPECIALS, ernie4_5_vl_moe
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.prompts import read_prompt
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.runtime.layout import feature_index
from vlmc.schema import Json
from vlmc.sources import check_weights, read_checkpoint

FAMILY = FAMILIES["ernie4.5-vl"]
IMAGES: Json = {"image_processor_type": "Ernie4_5_VLMoeImageProcessor"}


def facts(config: Json) -> ModelFacts:
    return FAMILY.facts(Checkpoint(config, {}, IMAGES, {}, {}))


def test_weights_are_counted(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    folder = ernie4_5_vl_moe(tmp_path)
    counted = FAMILY.facts(read_checkpoint(folder, tokenizer=False)).weights
    assert counted is not None
    model = AutoModelForImageTextToText.from_pretrained(folder).model
    real = sum(p.numel() for p in model.language_model.layers.parameters())
    assert counted.language == pytest.approx(real, rel=0.02)
    parts = (model.vision_tower, model.resampler_model)
    real = sum(p.numel() for part in parts for p in part.parameters())
    assert counted.vision == pytest.approx(real, rel=0.05)
    assert counted.head == 0


@pytest.mark.parametrize("inner", [(32, 24), (24, 24)])
def test_tensors_are_those_transformers_reads(tmp_path: Path, inner: tuple[int, int]) -> None:
    from transformers import AutoModelForImageTextToText

    from vlmc.passes.checkpoint import read_rows
    from vlmc.passes.parameters import match_names, parameter_sources

    folder = ernie4_5_vl_moe(tmp_path, inner=inner)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    found = FAMILY.facts(read_checkpoint(folder, tokenizer=False))
    assert FAMILY.tensors is not None
    index = FAMILY.tensors(check_weights(folder), found)
    named = dict(model.named_parameters())
    sources = parameter_sources(model, index, match_names(model, index), named)
    for name, parameter in named.items():
        ref = index[sources[name]]
        rows = ref.shape[0]
        read = [read_rows(ref, 0, rows // 2), read_rows(ref, rows // 2, rows)]
        assert np.array_equal(np.concatenate(read), parameter.detach().numpy()), name


def test_tokens_around_pictures_are_theirs_in_a_prompt(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Ernie4_5_VLMoeProcessor

    folder = ernie4_5_vl_moe(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    spec, _ = read_prompt(
        folder,
        None,
        found.image_token_id,
        found.text.vocab,
        plain_image=FAMILY.plain_image,
        beside_tokens=found.beside_tokens,
    )

    class WithoutVideo(Ernie4_5_VLMoeProcessor):
        def check_argument_for_proper_class(self, name: str, argument: Any) -> type:
            return type(argument)

    processor = WithoutVideo(None, AutoTokenizer.from_pretrained(folder))
    ids = np.array([1, 40, *range(4, 9), 41, 3])
    types = processor.create_moe_mm_token_type_ids(ids)
    rows = feature_index(ids, np.zeros(len(ids), np.bool), (), (), spec)
    seen = (rows != -1) | (ids == found.image_token_id)
    assert seen.tolist() == (types > 0).tolist()
    assert sorted(spec.beside_token_ids) == [SPECIALS.index(one) for one in SPECIALS[4:9]]


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Ernie4_5_VLMoeConfig

    found, config = facts({}), Ernie4_5_VLMoeConfig()
    assert found.image_token_id == config.image_token_id
    text = config.text_config
    assert (found.text.layers, found.text.vocab) == (text.num_hidden_layers, text.vocab_size)
    assert found.weights is not None
    assert found.weights.head == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"vision_config": {"temporal_merge_size": 4}}, "'temporal_merge_size' is 4"),
        ({"vision_config": {"patch_size": 16}}, "the tower's patch_size is 16"),
        ({"text_config": {"mlp_layer_types": ["dense"]}}, "not one of .* for each of 28 layers"),
        ({"text_config": {"moe_intermediate_size": 24}}, "24 are not the widths"),
        ({"text_config": {"moe_k": 65}}, "'moe_k' is 65"),
    ],
)
def test_variants_that_are_refused(config: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(config)


def test_experts_that_do_not_part_evenly_are_refused(tmp_path: Path) -> None:
    folder = ernie4_5_vl_moe(tmp_path)
    index = check_weights(folder)
    odd = {name: ref for name, ref in index.items() if ".experts.9." not in name}
    found = FAMILY.facts(read_checkpoint(folder, tokenizer=False))
    assert FAMILY.tensors is not None
    with pytest.raises(VlmcError, match="is one of 9 experts"):
        FAMILY.tensors(odd, found)
