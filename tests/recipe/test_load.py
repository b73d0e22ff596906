"""Recipes read, overridden and refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmc.errors import VlmcError
from vlmc.recipe import load_recipe, recorded
from vlmc.recipe.text import parse

MINIMAL = "model: owner/name\n"


def write(folder: Path, text: str | bytes, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(VlmcError) as caught:
        load_recipe(write(folder, text), overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_only_the_model_is_required(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL, "my model.yaml"))
    assert recipe.model == "owner/name"
    assert recipe.name == "my-model"
    assert (recipe.prefill_seq_len, recipe.ctx_len, recipe.batch_size) == (None, None, 1)
    assert (recipe.split, recipe.recipe, recipe.revision) == ("dual", 1, None)
    assert recipe.precision.model_dump() == {
        "vision": "fp32",
        "language": "fp32",
        "kv_cache": "fp32",
    }
    assert recipe.quantize.block == 32
    assert (recipe.quantize.calibration, recipe.quantize.questions) == ("auto", None)
    assert recipe.compile.backend == "onnxruntime"


def test_every_key(tmp_path: Path) -> None:
    text = """\
model: owner/name
prefill-seq-len: 64
ctx-len: 3000
batch-size: 4
precision: {vision: int8, language: int4, kv-cache: fp16}
split: single
recipe: 1
name: mine-v1.2
revision: 0a1b2c3
images: {max-per-prompt: 2, min-pixels: 3136, max-pixels: 100352, max-tiles: 6}
quantize: {block: 64, embedding: fp16, head: int8, calibration: off}
compile: {backend: onnxruntime, threads: 4}
checks: {max-logit-error: 0.5, max-feature-error: 1, min-token-agreement: 0.99, reference: off}
budgets: {max-bundle-size: 4GiB, max-build-memory: 2.5 GB, max-build-seconds: 900}
"""
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.budgets.max_bundle_size == 4 * 1024**3
    assert recipe.budgets.max_build_memory == 2_500_000_000
    assert recipe.checks.reference == "off"
    assert recipe.checks.max_feature_error == 1.0
    assert recipe.images.max_tiles == 6
    values = recorded(recipe)
    assert values["precision"] == {"vision": "int8", "language": "int4", "kv-cache": "fp16"}
    assert values["quantize"] == {
        "block": 64,
        "embedding": "fp16",
        "head": "int8",
        "calibration": "off",
    }
    assert load_recipe(write(tmp_path, text)) == recipe


def test_a_word_is_the_language_precision(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL + "precision: int4\n"))
    assert recipe.precision.language == "int4"
    assert recipe.precision.vision == "fp32"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("splitt: dual", "r.yaml:2: splitt: unknown key 'splitt'"),
        ("splitt: dual", "did you mean 'split'?"),
        ("prefill_seq_len: 3", "did you mean 'prefill-seq-len'?"),
        ("block: 32", "'block' belongs under 'quantize'"),
        ("images: {batch-size: 1}", "'batch-size' is a top-level key"),
        ("split: doul", "r.yaml:2: split: 'doul' is not allowed here"),
        ("split: doul", "allowed: dual, single"),
        ("split: doul", "did you mean 'dual'?"),
        ("precision: int3", "r.yaml:2: precision: 'int3' is not allowed here"),
        ("precision: {vision: int4}", "r.yaml:2: precision.vision: 'int4' is not allowed here"),
        ("precision: {kv-cache: int8}", "allowed: fp32, fp16"),
        ("quantize:\n  block: 33", "r.yaml:3: quantize.block: '33' is not allowed here"),
        ("quantize:\n  block: 33", "allowed: 16, 32, 64, 128"),
        ("recipe: 2", "recipe version '2' is not known"),
        ("recipe: true", "recipe version 'true' is not known"),
        ("batch-size: 0", "batch-size: '0' is out of range: at least 1"),
        ("batch-size: 257", "at most 256"),
        ("ctx-len: 1", "at least 2"),
        ("name: ../up", "name: '../up' cannot be a name"),
        ("name: a/b", "cannot be a name"),
        ("name: .hidden", "cannot be a name"),
        ("name: ends.", "cannot be a name"),
        ("revision: ../x", "cannot be a revision"),
        ("revision: 1234567", "quote it if it is meant as a word"),
        ("images: 3", "images: '3' is not a mapping of keys to values"),
        ("budgets: {max-bundle-size: 4 parsecs}", "budgets.max-bundle-size: '4 parsecs' is not a"),
        ("budgets: {max-bundle-size: 0B}", "more than 0"),
        ("checks: {min-token-agreement: 1.5}", "at most 1"),
        ("checks: {max-logit-error: true}", "'true' is not a number"),
        ("split:", "an empty value is not allowed here"),
        ("ctx-len: 100\nprefill-seq-len: 101", "prefill-seq-len 101 is more than ctx-len 100"),
        ("images: {min-pixels: 9, max-pixels: 4}", "min-pixels 9 is more than max-pixels 4"),
    ],
)
def test_mistakes_name_place_value_and_choices(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, MINIMAL + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("split: on", "'on' is not allowed here"),
        ("split: yes", "'yes' is not allowed here"),
        ("ctx-len: 0o17", "'0o17' is not a whole number"),
        ("ctx-len: 017", "'017' is not a whole number"),
        ("ctx-len: 0x10", "'0x10' is not a whole number"),
        ("ctx-len: 1:30", "'1:30' is not a whole number"),
        ("ctx-len: 1_000", "'1_000' is not a whole number"),
        ("ctx-len: 100.0", "'100.0' is not a whole number"),
        ("ctx-len: '100'", "'100' is not a whole number"),
        ("ctx-len: true", "'true' is not a whole number"),
        ("ctx-len: .nan", "r.yaml:2: '.nan' is not a finite number"),
        ("ctx-len: -.inf", "not a finite number"),
        ("checks: {max-logit-error: 1e999}", "'1e999' is not a finite number"),
        ("ctx-len: " + "9" * 5000, "r.yaml:2: the number is too large"),
        ("ctx-len: " + "9" * 18, "at most 1048576"),
        ("model: other/name", "r.yaml:2: the key 'model' is given twice (first on line 1)"),
        ("quantize: {block: 32, block: 16}", "the key 'block' is given twice"),
        ("name: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python"),
        ("name: !secret x", "the tag '!secret' is not allowed"),
        ("quantize: &q {block: 32}", "r.yaml:2: anchors and aliases are not allowed"),
        ("quantize: *q", "anchors and aliases are not allowed"),
        ("<<: {split: dual}", "unknown key '<<'"),
        ("? [a, b]\n: c", "r.yaml:2: a key must be a word"),
        ("1: x", "unknown key '1'"),
        ("\tsplit: dual", "indent with spaces, not tabs"),
        ("---\nsplit: dual", "more than one document"),
        ("name: [", "r.yaml:2: not valid YAML"),
        ("name: 'open", "not valid YAML"),
        ("name: \x00", "not valid YAML"),
        ("images: " + "{a: " * 50 + "1" + "}" * 50, "nested deeper than 20 levels"),
        ("images: " + "[" * 5000, "nested deeper than 20 levels"),
    ],
)
def test_yaml_traps(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, MINIMAL + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the recipe is empty"),
        ("# nothing\n", "the recipe is empty"),
        ("- model: a/b\n", "a recipe is a mapping of keys to values, not a list"),
        ("model\n", "not 'model'"),
        ("split: dual\n", "the key 'model' is missing"),
        (b"model: a/b\nname: \xff\xfe\n", "r.yaml:2: not a text in UTF-8"),
        ("model: a/b".encode("utf-16"), "not a text in UTF-8"),
        (b"# " + b"x" * (1 << 20), "too large for a recipe"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in refused(tmp_path, text)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "\ufeff" + MINIMAL)).model == "owner/name"


def test_missing_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "llava.yaml")
    with pytest.raises(VlmcError, match="no such file") as caught:
        load_recipe(tmp_path / "lava.yaml")
    assert f"did you mean '{tmp_path / 'llava.yaml'}'?" in str(caught.value)
    with pytest.raises(VlmcError, match="folder, not a recipe file"):
        load_recipe(tmp_path)
    with pytest.raises(VlmcError, match="no such file"):
        load_recipe(tmp_path / "no" / "where.yaml")


def test_a_path_no_system_takes() -> None:
    with pytest.raises(VlmcError, match="cannot be read"):
        load_recipe(Path("x" * 5000))


def test_several_mistakes_are_listed_together(tmp_path: Path) -> None:
    message = refused(tmp_path, MINIMAL + "split: x\nbatch-size: 0\nfoo: 1\n")
    assert message.startswith("r.yaml: 3 mistakes in this recipe")
    for place in ("r.yaml:2: split", "r.yaml:3: batch-size", "r.yaml:4: foo"):
        assert place in message


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "precision: int4\n")
    recipe = load_recipe(
        path, ["ctx-len=512", "precision.vision=int8", "images={max-per-prompt: 2}", "name=other"]
    )
    assert recipe.ctx_len == 512
    assert (recipe.precision.vision, recipe.precision.language) == ("int8", "int4")
    assert recipe.images.max_per_prompt == 2
    assert recipe.name == "other"
    assert load_recipe(path, ["ctx-len=1000", "ctx-len=2000"]).ctx_len == 2000
    assert load_recipe(path, ["ctx-len="]).ctx_len is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ctx-len", "--set ctx-len: write it as key=value"),
        ("=3", "write it as key=value"),
        (".a=3", "write it as key=value"),
        ("quantise.block=16", "--set quantise.block: unknown key 'quantise'"),
        ("quantise.block=16", "did you mean 'quantize'?"),
        ("quantize.block=17", "--set quantize.block: '17' is not allowed here"),
        ("ctx-len=abc", "--set ctx-len: 'abc' is not a whole number"),
        ("model.x=3", "'model' is 'owner/name', not a mapping"),
        ("images=[1", "not valid YAML"),
        ("images=*a", "anchors and aliases"),
        ("precision=int5", "--set precision: 'int5' is not allowed here"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refused(tmp_path, MINIMAL, override)


def test_folders_resolve_against_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "model").mkdir()
    for text in ("../model", "./../model", str(tmp_path / "model")):
        recipe = load_recipe(write(tmp_path / "recipes", f"model: {text}\n"))
        assert recipe.folder == (tmp_path / "model").resolve()
        assert recorded(recipe)["model"] == "local"
    (tmp_path / "recipes" / "owner" / "name").mkdir(parents=True)
    near = load_recipe(write(tmp_path / "recipes", MINIMAL))
    assert near.folder == (tmp_path / "recipes" / "owner" / "name").resolve()


def test_questions_lie_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("[]", encoding="utf-8")
    for text in ("mine.jsonl", "./mine.jsonl", str(tmp_path / "mine.jsonl")):
        recipe = load_recipe(write(tmp_path, MINIMAL + f"quantize: {{calibration: {text}}}\n"))
        assert recipe.quantize.questions == tmp_path / "mine.jsonl"
        values = recorded(recipe)["quantize"]
        assert isinstance(values, dict)
        assert values["calibration"] == "mine.jsonl"
    text = refused(tmp_path, MINIMAL + "quantize: {calibration: atuo}\n")
    assert "r.yaml:2: quantize.calibration: there is no file 'atuo'" in text
    assert "did you mean 'auto'?" in text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("./nowhere", "there is no folder './nowhere'"),
        ("/no/such/folder", "there is no folder"),
        ("~/no-such-folder-here", "there is no folder"),
        ("gpt2", "'gpt2' is neither a hub id nor a folder"),
        ("a/b/c", "neither a hub id nor a folder"),
        ("a/b--c", "neither a hub id nor a folder"),
        ("a/b..c", "neither a hub id nor a folder"),
        ("a/b.git", "neither a hub id nor a folder"),
        ("a/b-", "neither a hub id nor a folder"),
        ("a/" + "b" * 95, "neither a hub id nor a folder"),
        ("https://hub.example/owner/name/tree/main", "write 'model: owner/name'"),
        ("owner/name@abc", "write 'model: owner/name' and 'revision: abc'"),
        ("./r.yaml", "is a file, not a model folder"),
    ],
)
def test_models_that_cannot_be(tmp_path: Path, model: str, expected: str) -> None:
    assert expected in refused(tmp_path, f"model: {model}\n")


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert "this model is a local folder" in refused(tmp_path, "model: ./m\nrevision: main\n")


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        recipe.batch_size = 2  # type: ignore[misc]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    message = "here"
    try:
        parse(text, "here")
    except VlmcError as error:
        message = str(error)
    assert message.startswith("here")


def test_a_file_whose_name_gives_no_name_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "模型.yaml"
    path.write_text("model: a/b\n", encoding="utf-8")
    with pytest.raises(VlmcError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}: name: the file's name gives the bundle none\n"
        "  add one, such as 'name: my-model', or --set name=my-model"
    )
    assert load_recipe(path, ["name=mine"]).name == "mine"
