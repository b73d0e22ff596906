"""Plans: everything resolved, and what cannot be refused before any weight is read."""

import math
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.plan import Plan, ProgramPlan, resolve
from vlmc.recipe import load_recipe, recorded
from vlmc.sources import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
LLAVA, QWEN = CONFIGS / "llava-1.5-7b", CONFIGS / "qwen2-vl-2b"


def plan(folder: Path, tmp_path: Path, *overrides: str) -> Plan:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {folder}\n")
    recipe = load_recipe(path, overrides)
    return resolve(recipe, read_checkpoint(folder, tokenizer=False), recipe_at="r.yaml")


def shapes(program: ProgramPlan) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in program.inputs}


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    found = plan(LLAVA, tmp_path)
    assert found.limits.model_dump() == {
        "prefill_seq_len": 128,
        "ctx_len": 4096,
        "batch_size": 1,
        "max_images": 7,
    }
    values = recorded(found.recipe)
    assert values["ctx-len"] == 4096
    assert values["prefill-seq-len"] == 128
    assert values["quantize"] == {
        "block": 32,
        "embedding": "fp32",
        "head": "fp32",
        "calibration": "auto",
    }
    assert plan(LLAVA, tmp_path, "ctx-len=600").limits.prefill_seq_len == 128
    assert plan(QWEN, tmp_path, "ctx-len=64").limits.prefill_seq_len == 64


def test_the_language_program(tmp_path: Path) -> None:
    found = plan(LLAVA, tmp_path, "ctx-len=3000", "batch-size=2", "precision.kv-cache=fp16")
    vision, language = found.programs
    assert [p.name for p in found.programs] == ["vision", "language"]
    assert shapes(vision) == {"pixel_values": ("float32", (1, 3, 336, 336))}
    assert [(o.name, o.shape) for o in vision.outputs] == [("image_features", (576, 4096))]
    inputs = shapes(language)
    assert list(inputs)[:6] == [
        "input_ids",
        "image_features",
        "feature_index",
        "position_ids",
        "sequence_lengths",
        "total_length",
    ]
    assert inputs["input_ids"] == ("int64", ("batch", "step"))
    assert inputs["image_features"] == ("float32", ("features", 4096))
    assert inputs["feature_index"] == ("int64", ("batch", "step"))
    assert inputs["position_ids"] == ("int64", ("batch", "step"))
    assert inputs["sequence_lengths"] == ("int32", ("batch",))
    assert inputs["total_length"] == ("int32", ())
    caches = [name for name in inputs if name.startswith("past_")]
    assert len(caches) == 64
    assert inputs["past_key.31"] == ("float16", ("batch", 32, 3000, 128))
    assert [o.name for o in language.outputs[:3]] == ["logits", "present_key.0", "present_value.0"]
    assert language.outputs[0].shape == ("batch", 32064)
    cached = sum(2 * math.prod([2, *inputs[name][1][1:]]) for name in caches)  # type: ignore[list-item]
    assert found.kv_cache_bytes == cached


def test_three_axes_of_positions(tmp_path: Path) -> None:
    vision, language = plan(QWEN, tmp_path).programs
    assert shapes(language)["position_ids"] == ("int64", (3, "batch", "step"))
    assert shapes(vision) == {
        "pixel_values": ("float32", ("patches", 1176)),
        "patch_positions": ("int64", ("patches", 2)),
    }
    assert vision.outputs[0].shape == ("image_tokens", 1536)


def test_the_single_split_holds_both(tmp_path: Path) -> None:
    dual = plan(LLAVA, tmp_path)
    [model] = plan(LLAVA, tmp_path, "split=single").programs
    names = [spec.name for spec in model.inputs]
    expected = [spec.name for program in dual.programs for spec in program.inputs]
    assert names == [expected[0], "run_vision", *expected[1:]]
    outputs = [spec.name for spec in model.outputs]
    assert outputs[:3] == ["logits", "present_features", "present_key.0"]
    assert not set(names) & set(outputs)


@pytest.mark.parametrize(
    ("precision", "overrides", "embedding", "head"),
    [
        ("int4", (), "int8", "int8"),
        ("int8", (), "int8", "int8"),
        ("fp16", (), "fp16", "fp16"),
        ("fp32", (), "fp32", "fp32"),
        ("int4", ("quantize.embedding=int4",), "int4", "int8"),
        ("int4", ("quantize.head=fp32",), "int8", "fp32"),
    ],
)
def test_tables_are_never_below_int8_unasked(
    tmp_path: Path, precision: str, overrides: tuple[str, ...], embedding: str, head: str
) -> None:
    storage = plan(LLAVA, tmp_path, f"precision={precision}", *overrides).storage
    assert (storage.language, storage.embedding, storage.head) == (precision, embedding, head)
    assert (storage.vision, storage.kv_cache) == ("fp32", "fp32")


def test_fewer_bits_make_a_smaller_bundle(tmp_path: Path) -> None:
    sizes = [plan(LLAVA, tmp_path, f"precision={p}").bundle_bytes for p in ("int4", "int8", "fp16")]
    assert None not in sizes
    assert sizes == sorted(sizes)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("folder", "overrides", "expected"),
    [
        (LLAVA, ["ctx-len=4097"], "r.yaml: ctx-len: ctx-len 4097 is more than the 4096 positions"),
        (LLAVA, ["ctx-len=576"], "no image fits: the smallest takes 576 tokens"),
        (LLAVA, ["prefill-seq-len=4097"], "prefill-seq-len 4097 is more than ctx-len 4096"),
        (LLAVA, ["images.max-per-prompt=8"], "8 images take at least 4608 tokens"),
        (LLAVA, ["images.max-per-prompt=8"], "set it to 7 or less"),
        (LLAVA, ["images.max-pixels=5000"], "r.yaml: images.max-pixels: pictures of the family"),
        (QWEN, ["images.max-tiles=2"], "allowed: max-per-prompt, min-pixels, max-pixels"),
        (QWEN, ["images.max-pixels=1000"], "r.yaml: images: the smallest picture (3136"),
        (LLAVA, ["compile.backend=onnxruntim"], "did you mean 'onnxruntime'?"),
    ],
)
def test_the_impossible_is_refused(
    tmp_path: Path, folder: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(VlmcError) as caught:
        plan(folder, tmp_path, *overrides)
    assert expected in str(caught.value)


def test_tiles_follow_the_recipes_bound(tmp_path: Path) -> None:
    folder = LLAVA.parent / "internvl3-1b"
    free, held = plan(folder, tmp_path), plan(folder, tmp_path, "images.max-tiles=4")
    assert (free.image_tokens(448, 448), held.image_tokens(900, 2700)) == (256, 256 * 4)
    assert (free.image_tokens(480, 640), held.image_tokens(480, 640)) == (256 * 13, 256)
    with pytest.raises(VlmcError, match="allowed: max-per-prompt, max-tiles"):
        plan(folder, tmp_path, "images.max-pixels=90000")


def test_one_image_may_fill_all_but_one_position(tmp_path: Path) -> None:
    assert plan(LLAVA, tmp_path, "ctx-len=577").limits.max_images == 1


def test_image_tokens_follow_the_recipes_bounds(tmp_path: Path) -> None:
    free = plan(QWEN, tmp_path)
    held = plan(QWEN, tmp_path, "images.max-pixels=100352")
    assert free.image_tokens(480, 640) == 391
    assert held.image_tokens(480, 640) <= 128
    assert held.facts.images.options["max_pixels"] == 100352
