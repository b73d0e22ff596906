"""Models from the hub, against a stand-in that speaks its protocol."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "configs"
TOKEN = "hf_" + "StandInTokenOfNobody"
RESOLVE = """
import json, sys
from pathlib import Path
from vlmc.errors import VlmcError
from vlmc.recipe import load_recipe
from vlmc.sources import digests, resolve
try:
    found = resolve(load_recipe(Path(sys.argv[1])), offline="--offline" in sys.argv)
except VlmcError as error:
    sys.exit(f"refused: {error}")
print(json.dumps([found.model, found.revision, list(found.files), digests(found)]))
"""


def recipe(folder: Path, text: str = "model: owner/name\n") -> str:
    path = folder / "r.yaml"
    path.write_text(text)
    return str(path)


def test_only_needed_files_are_fetched(hub, model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "README.md").write_text("hello")
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    commit = hub.add("owner/name", model)
    done = hub.run(recipe(tmp_path), script=RESOLVE)
    assert done.returncode == 0, done.stderr
    name, revision, files, sums = json.loads(done.stdout)
    assert (name, revision) == ("owner/name", commit)
    assert "model.safetensors" in files
    assert "tokenizer.json" in files
    assert set(sums) == set(files)
    fetched = {path for path in hub.requests if "/resolve/" in path}
    assert not [path for path in fetched if path.endswith((".bin", ".md")) or "onnx" in path]
    before = len(hub.requests)
    again = hub.run(recipe(tmp_path), "--offline", script=RESOLVE)
    assert json.loads(again.stdout) == json.loads(done.stdout)
    assert len(hub.requests) == before


def test_weights_are_those_the_index_names(hub, model: Path, tmp_path: Path) -> None:
    single = model / "model.safetensors"
    for name in ("part-1.safetensors", "part-2.safetensors", "consolidated.safetensors"):
        (model / name).write_bytes(single.read_bytes())
    single.unlink()
    shards = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    hub.add("owner/name", model)
    done = hub.run(recipe(tmp_path), script=RESOLVE)
    assert done.returncode == 0, done.stderr
    files = json.loads(done.stdout)[2]
    assert [n for n in files if n.endswith(".safetensors")] == sorted(shards.values())
    index.write_text(json.dumps({"weight_map": {"a": "../part-1.safetensors"}}))
    hub.add("owner/other", model)
    done = hub.run(recipe(tmp_path, "model: owner/other\n"), script=RESOLVE)
    assert "'weight_map' does not map tensors to files" in done.stderr


def test_a_cache_that_cannot_be_written(hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    (tmp_path / "file").write_text("no folder")
    done = hub.run("check", recipe(tmp_path), env={"HF_HOME": str(tmp_path / "file")})
    assert done.returncode == 2, done.stderr
    assert "the download cannot be stored: Not a directory" in done.stderr


def test_an_endpoint_that_is_no_address(hub, tmp_path: Path) -> None:
    done = hub.run("check", recipe(tmp_path), env={"HF_ENDPOINT": "nowhere"})
    assert done.returncode == 0, done.stderr
    assert "the hub cannot be reached" in done.stdout


def test_check_fetches_no_weights(hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["unknown"] is None
    assert plan["limits"]["ctx_len"] == 4096
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    offline = hub.run("check", recipe(tmp_path), "--json", "--offline")
    assert json.loads(offline.stdout) == plan


def test_check_without_the_hub_says_what_it_does_not_know(hub, tmp_path: Path) -> None:
    for words, env in (
        (["--offline"], {}),
        ([], {"HF_HUB_OFFLINE": "1"}),
        ([], {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        done = hub.run("check", recipe(tmp_path), *words, env=env)
        assert done.returncode == 0, done.stderr
        assert "the recipe itself is valid" in done.stdout
        assert "Not known: programs, KV cache, image tokens" in done.stdout
        as_json = hub.run("check", recipe(tmp_path), "--json", *words, env=env)
        assert json.loads(as_json.stdout)["unknown"].startswith("owner/name: ")
    assert not hub.requests


def test_a_mistake_is_found_without_the_hub_too(hub, tmp_path: Path) -> None:
    path = recipe(tmp_path, "model: owner/name\nsplit: doul\n")
    done = hub.run("check", path, "--offline")
    assert done.returncode == 2
    assert "did you mean 'dual'?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: owner/nane\n", "owner/nane: the hub has no such model, or keeps it private"),
        ("model: owner/name\nrevision: v9\n", "owner/name@v9: the model has no such revision"),
    ],
)
def test_what_the_hub_does_not_have(
    hub, model: Path, tmp_path: Path, text: str, expected: str
) -> None:
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path, text))
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pinned_commit_is_used(hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("owner/name", model)
    text = f"model: owner/name\nrevision: {commit}\n"
    done = hub.run(recipe(tmp_path, text), script=RESOLVE)
    assert json.loads(done.stdout)[1] == commit


def test_a_gated_model_needs_a_token_and_never_shows_it(hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("owner/name", model, gated=True)
    path = recipe(tmp_path)
    for env in ({}, {"HF_TOKEN": "hf_wrongwrongwrong"}):
        done = hub.run("check", path, env=env)
        assert done.returncode == 2, done.stderr
        assert "access to this model is restricted" in done.stderr
        assert "HF_TOKEN" in done.stderr
        assert "wrongwrong" not in done.stdout + done.stderr
    allowed = hub.run(path, script=RESOLVE, env={"HF_TOKEN": TOKEN})
    assert allowed.returncode == 0, allowed.stderr
    assert json.loads(allowed.stdout)[1] == commit
    assert f"Bearer {TOKEN}" in hub.authorized
    checked = hub.run("check", path, "--json", env={"HF_TOKEN": TOKEN})
    assert TOKEN not in allowed.stdout + allowed.stderr + checked.stdout + checked.stderr


def test_pickles_on_the_hub_are_refused_unread(hub, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path))
    assert done.returncode == 2
    assert "the weights are pickles ('pytorch_model.bin')" in done.stderr
    assert "from_pretrained('owner/name')" in done.stderr
    assert not [path for path in hub.requests if path.endswith(".bin")]


def test_an_unfinished_download_is_noticed_offline(hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    assert hub.run("check", recipe(tmp_path)).returncode == 0
    done = hub.run(recipe(tmp_path), "--offline", script=RESOLVE)
    assert done.returncode == 1
    assert "the model is not in the local cache" in done.stderr


@pytest.mark.parametrize(
    ("name", "model_id", "config", "lines"),
    [
        ("llava", "llava-hf/llava-1.5-7b-hf", "llava-1.5-7b", ["1.5 GiB"]),
        (
            "llava-interleave-0.5b",
            "llava-hf/llava-interleave-qwen-0.5b-hf",
            "llava-interleave-qwen-0.5b",
            ["768.0 MiB"],
        ),
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl-2b", ["112.0 MiB"]),
        ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl-7b", ["224.0 MiB"]),
    ],
)
def test_the_comments_of_the_recipes_hold(
    hub, name: str, model_id: str, config: str, lines: list[str]
) -> None:
    hub.add(model_id, CONFIGS / config)
    path = ROOT / "recipes" / f"{name}.yaml"
    done = hub.run("check", str(path), "--json", "--image-size", "640x480")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["model"]["model"] == model_id
    comment = path.read_text()
    text = hub.run("check", str(path)).stdout
    for line in lines:
        assert line in text
        assert f"KV cache {line}" in comment
    weights = text.partition("about ")[2].splitlines()[0]
    assert f"weights about {weights}" in comment
    tokens = plan["image_tokens"]["640x480"]
    assert f"{tokens} tokens" in comment
