"""Gemma 4 Unified: what is read of its JSON, its masks, and what is refused."""

from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.families import FAMILIES
from vlmc.families.spec import Checkpoint, ModelFacts
from vlmc.schema import Json
from vlmc.sources import read_checkpoint

FAMILY = FAMILIES["gemma4-unified"]
IMAGES: Json = {"image_processor_type": "Gemma4UnifiedImageProcessor"}


def facts(tower: Json | None = None, **text: object) -> ModelFacts:
    sizes: Json = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    parts: Json = {"text_config": {**sizes, "num_key_value_heads": 2, **text}}
    parts["vision_config"] = {"patch_size": 16} if tower is None else tower
    return FAMILY.facts(Checkpoint(parts, {}, IMAGES, {}, {}))


def test_a_saved_checkpoint_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from tests.checkpoints.unified import gemma4_unified

    folder = gemma4_unified(tmp_path)
    found = FAMILY.facts(read_checkpoint(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert found.image_token_id == model.config.image_token_id
    assert found.min_image_tokens == 35 + 2
    for layer, own in enumerate(model.config.text_config.per_layer_config):
        assert found.heads_of(layer) == (own.num_key_value_heads, own.head_dim)
    assert found.weights is not None
    real = sum(parameter.numel() for parameter in model.parameters())
    assert sum(vars(found.weights).values()) == pytest.approx(real, rel=0.02)


def test_what_is_left_out_is_as_transformers_has_it() -> None:
    from transformers import Gemma4UnifiedConfig

    whole = Gemma4UnifiedConfig(vision_config={}, text_config={})
    found = FAMILY.facts(Checkpoint({"vision_config": {"patch_size": 16}}, {}, IMAGES, {}, {}))
    assert found.image_token_id == whole.image_token_id
    assert found.images.options["side"] == whole.vision_config.mm_posemb_size
    assert found.images.options["patch_size"] == whole.vision_config.model_patch_size
    text = whole.text_config
    assert (found.text.layers, found.text.vocab) == (text.num_hidden_layers, text.vocab_size)
    assert found.text.max_positions == text.max_position_embeddings
    assert found.masks[1].window == text.sliding_window


def test_pictures_are_seen_both_ways_unless_the_decoder_says_no() -> None:
    full, sliding = facts(sliding_window=7).masks
    assert (full.spans, full.window) == ("images", None)
    assert (sliding.spans, sliding.window, sliding.window_in_spans) == ("images", 7, False)
    assert facts(use_bidirectional_attention=None).masks == ()


@pytest.mark.parametrize(
    ("tower", "text", "expected"),
    [
        (None, {"model_type": "gemma4_text"}, "'gemma4_text'"),
        (None, {"use_bidirectional_attention": "all"}, "attend both ways"),
        (None, {"num_kv_shared_layers": 6}, "no layer of their kind has"),
        ({"mm_embed_dim": 48}, {}, "'output_proj_dims' is not 'mm_embed_dim', 48"),
        ({"pooling_kernel_size": 2}, {}, "the processor says 3, the vision tower 2"),
    ],
)
def test_variants_that_are_refused(tower: Json | None, text: Json, expected: str) -> None:
    with pytest.raises(VlmcError, match=expected):
        facts(tower, **text)


def test_a_decoder_without_pictures_is_refused() -> None:
    with pytest.raises(VlmcError, match="takes no pictures"):
        FAMILY.facts(Checkpoint({"vision_config": None}, {}, IMAGES, {}, {}))
