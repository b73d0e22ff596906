"""What cannot be built is said in one error, by the pass that finds it."""

import pytest

from tests.build.edits import edit
from vlmc.errors import VlmcError

pytestmark = pytest.mark.build


def test_one_table_cannot_be_stored_in_two_formats(workshop):
    with pytest.raises(VlmcError, match=r"'fp32' and 'int8' exclude each other") as caught:
        workshop.build("qwen2-vl-tied", "quantize.embedding=fp32", "quantize.head=int8")
    assert "quantize.embedding" in str(caught.value)


def test_a_switch_of_the_environment_is_read_before_anything_else(workshop, monkeypatch):
    (workshop.folder / "empty").mkdir()
    workshop.made["checkpoint", "empty"] = workshop.folder / "empty"  # no model is looked for
    monkeypatch.setenv("VLMC_KERNELS", "of")
    with pytest.raises(VlmcError, match=r"^VLMC_KERNELS in the environment: 'of' says neither"):
        workshop.build("empty")


def test_a_configuration_that_transformers_refuses_is_the_users_mistake(workshop):
    from tests.checkpoints.fixed import llava

    folder = llava(workshop.folder / "refused", head_dim=16)
    edit(folder / "config.json", lambda c: c["text_config"].update(num_attention_heads=6))
    workshop.made["checkpoint", "refused"] = folder
    with pytest.raises(VlmcError, match="transformers refuses this configuration") as caught:
        workshop.build("refused", until="export")
    assert "config.json" in str(caught.value)


def test_a_decoder_with_attention_sinks_is_not_built_without_them(workshop):
    from tests.checkpoints.tiles import internvl

    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}
    folder = internvl(workshop.folder / "sinks", text="gpt_oss", head_dim=16, **sizes)
    workshop.made["checkpoint", "sinks"] = folder
    with pytest.raises(VlmcError, match="GptOssAttention has attention sinks"):
        workshop.build("sinks", until="export")


def test_a_decoder_whose_class_knows_no_other_attention_is_refused(workshop):
    from tests.checkpoints.queries import blip_2

    # Falcon looks its attention up in a table of its own.
    folder = blip_2(workshop.folder / "falcon", text="falcon")
    workshop.made["checkpoint", "falcon"] = folder
    with pytest.raises(VlmcError, match="has attention of its own") as caught:
        workshop.build("falcon", until="export")
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("diffllama", {}, "DiffLlamaAttention attends twice in one layer"),
        # A mask of its own making; rotations in complex numbers.
        ("doge", {}, "cannot be exported: AttributeError: 'CausalMask'"),
        (
            "deepseek_v2",
            {"kv_lora_rank": 16, "q_lora_rank": None, "first_k_dense_replace": 9},
            "cannot be exported: DispatchError: No ONNX function found",
        ),
        ("biogpt", {}, "its configuration says"),
    ],
)
def test_what_a_decoder_does_that_cannot_be_exported_is_said(workshop, text, values, said):
    from tests.checkpoints.fixed import llava

    workshop.made["checkpoint", text] = llava(workshop.folder / text, text=text, **values)
    with pytest.raises(VlmcError) as caught:
        workshop.build(text, until="export")
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_decoder_with_states_of_its_own_is_refused_where_no_family_carries_them(workshop):
    from tests.checkpoints.fixed import llava

    kinds = ["conv", "full_attention"]
    folder = llava(workshop.folder / "states", text="lfm2", layer_types=kinds, block_multiple_of=8)
    workshop.made["checkpoint", "states"] = folder
    with pytest.raises(VlmcError, match="layer 0 of the decoder keeps a state"):
        workshop.build("states", until="export")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_checkpoint_that_transformers_cannot_run_is_no_bug_of_ours(workshop, precision):
    """Gemma 4's decoder looks tokens up by its embeddings, which LLaVA gives it alone."""
    from tests.checkpoints.fixed import llava

    values = {"head_dim": 16, "global_head_dim": 16, "layer_types": ["full_attention"] * 2}
    rows = {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 1000}
    folder = llava(workshop.folder / "apart", tower="siglip", text="gemma4_text", **values, **rows)
    workshop.made["checkpoint", "apart"] = folder
    with pytest.raises(VlmcError, match="transformers could not run this checkpoint: ") as caught:
        workshop.build("apart", "checks.reference=auto", f"precision={precision}")
    assert "RuntimeError: It seems like you tried to call `forward`" in str(caught.value)
    assert "reference: off" in str(caught.value)
