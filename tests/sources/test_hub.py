"""Models from the hub: Hub, against a stand-in that speaks its protocol."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlmc.errors import VlmcError
from vlmc.recipe import load_recipe
from vlmc.sources import SourceFolder, UnreachableError, digests, resolve

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "data" / "configs"
TOKEN = "hf_" + "StandInTokenOfNobody"
NOWHERE = "http://127.0.0.1:9"
Hub = Any  # the fixture of conftest.py


def recipe(folder: Path, text: str = "model: owner/name\n") -> str:
    path = folder / "r.yaml"
    path.write_text(text)
    return str(path)


def fetch(path: str, *, offline: bool = False) -> SourceFolder:
    return resolve(load_recipe(Path(path)), offline=offline)


def test_only_needed_files_are_fetched(hub: Hub, model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "README.md").write_text("hello")
    (model / "onnx").mkdir()
    (model / "onnx" / "config.json").write_text("{}")
    commit = hub.add("owner/name", model)
    found = fetch(recipe(tmp_path))
    assert (found.model, found.revision, found.name) == ("owner/name", commit, "owner/name")
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(found.files)
    assert set(digests(found)) == set(found.files)
    fetched = {path for path in hub.requests if "/resolve/" in path}
    assert not [path for path in fetched if path.endswith((".bin", ".md")) or "onnx" in path]
    before = len(hub.requests)
    assert fetch(recipe(tmp_path), offline=True) == found
    assert len(hub.requests) == before


def test_folders_that_a_family_reads_are_fetched_too(hub: Hub, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "instructblip"}))
    for name in ("qformer_tokenizer", "qformer_tokenizer/deeper", "other_tokenizer"):
        (model / name).mkdir()
        (model / name / "tokenizer.json").write_text("{}")
        (model / name / "model.safetensors").write_bytes(b"")
    hub.add("owner/name", model)
    found = fetch(recipe(tmp_path))
    nested = [name for name in found.files if "/" in name]
    assert nested == ["qformer_tokenizer/tokenizer.json"]
    assert set(digests(found)) == set(found.files)
    assert fetch(recipe(tmp_path), offline=True) == found
    local = fetch(recipe(tmp_path, "model: ./model\n"))
    assert set(local.files) == set(found.files)
    fetched = {path for path in hub.requests if "/resolve/" in path}
    assert not [path for path in fetched if "other" in path or "deeper" in path]


def test_weights_are_those_the_index_names(hub: Hub, model: Path, tmp_path: Path) -> None:
    single = model / "model.safetensors"
    for name in ("part-1.safetensors", "part-2.safetensors", "consolidated.safetensors"):
        (model / name).write_bytes(single.read_bytes())
    single.unlink()
    shards = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    hub.add("owner/name", model)
    files = fetch(recipe(tmp_path)).files
    assert [n for n in files if n.endswith(".safetensors")] == sorted(shards.values())
    index.write_text(json.dumps({"weight_map": {"a": "../part-1.safetensors"}}))
    hub.add("owner/other", model)
    with pytest.raises(VlmcError, match="'weight_map' does not map tensors to files"):
        fetch(recipe(tmp_path, "model: owner/other\n"))


def test_a_cache_that_cannot_be_written(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    (tmp_path / "file").write_text("no folder")
    done = hub.spawn("check", recipe(tmp_path), HF_HOME=str(tmp_path / "file"))
    assert done.code == 2, done.err
    assert "the download cannot be stored: Not a directory" in done.err


def test_an_endpoint_that_is_no_address(hub: Hub, tmp_path: Path) -> None:
    done = hub.spawn("check", recipe(tmp_path), HF_ENDPOINT="nowhere")
    assert done.code == 0, done.err
    assert "the hub cannot be reached" in done.out


def test_check_fetches_no_weights(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path), "--json")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["unknown"] is None
    assert plan["limits"]["ctx_len"] == 4096
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    assert done.err == ""
    offline = hub.run("check", recipe(tmp_path), "--json", "--offline")
    assert json.loads(offline.out) == plan
    away = hub.spawn("check", recipe(tmp_path), "--json", HF_ENDPOINT=NOWHERE)
    assert json.loads(away.out) == plan


def test_check_without_the_hub_says_what_it_does_not_know(hub: Hub, tmp_path: Path) -> None:
    for done in (
        hub.run("check", recipe(tmp_path), "--offline"),
        hub.spawn("check", recipe(tmp_path), HF_HUB_OFFLINE="1"),
        hub.spawn("check", recipe(tmp_path), HF_ENDPOINT=NOWHERE),
    ):
        assert done.code == 0, done.err
        assert "the recipe itself is valid" in done.out
        assert "Not known: programs, KV cache, image tokens" in done.out
    as_json = hub.run("check", recipe(tmp_path), "--json", "--offline")
    assert json.loads(as_json.out)["unknown"].startswith("owner/name: ")
    assert not hub.requests


def test_a_mistake_is_found_without_the_hub_too(hub: Hub, tmp_path: Path) -> None:
    path = recipe(tmp_path, "model: owner/name\nsplit: doul\n")
    done = hub.run("check", path, "--offline")
    assert done.code == 2
    assert "did you mean 'dual'?" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: owner/nane\n", "owner/nane: the hub has no such model, or keeps it private"),
        ("model: owner/name\nrevision: v9\n", "owner/name@v9: the model has no such revision"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: Hub, model: Path, tmp_path: Path, text: str, expected: str
) -> None:
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path, text))
    assert done.code == 2, done.err
    assert expected in done.err
    assert "Traceback" not in done.err


def test_a_pinned_commit_is_used(hub: Hub, model: Path, tmp_path: Path) -> None:
    commit = hub.add("owner/name", model)
    text = f"model: owner/name\nrevision: {commit}\n"
    assert fetch(recipe(tmp_path, text)).revision == commit


def test_a_gated_model_needs_a_token_and_never_shows_it(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    commit = hub.add("owner/name", model, gated=True)
    path = recipe(tmp_path)
    for env in ({}, {"HF_TOKEN": "hf_wrongwrongwrong"}):
        done = hub.spawn("check", path, **env)
        assert done.code == 2, done.err
        assert "access to this model is restricted" in done.err
        assert "HF_TOKEN" in done.err
        assert "wrongwrong" not in done.out + done.err
    allowed = hub.spawn("check", path, "--json", HF_TOKEN=TOKEN)
    assert allowed.code == 0, allowed.err
    assert json.loads(allowed.out)["model"]["revision"] == commit
    assert f"Bearer {TOKEN}" in hub.authorized
    assert TOKEN not in allowed.out + allowed.err


def test_pickles_on_the_hub_are_refused_unread(hub: Hub, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("owner/name", model)
    done = hub.run("check", recipe(tmp_path))
    assert done.code == 2
    assert "the weights are pickles ('pytorch_model.bin')" in done.err
    assert "from_pretrained('owner/name')" in done.err
    assert not [path for path in hub.requests if path.endswith(".bin")]
    again = hub.run("check", recipe(tmp_path), "--offline")
    assert again.err == done.err


def test_an_unfinished_download_is_noticed_offline(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.add("owner/name", model)
    assert hub.run("check", recipe(tmp_path)).code == 0
    with pytest.raises(UnreachableError, match="the model is not in the local cache"):
        fetch(recipe(tmp_path), offline=True)


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
        ("vip-llava-7b", "llava-hf/vip-llava-7b-hf", "vip-llava-7b", ["1.5 GiB"]),
        (
            "llava-onevision-0.5b",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava-onevision-0.5b",
            ["120.0 MiB"],
        ),
        ("fastvlm-0.5b", "KamilaMila/FastVLM-0.5B", "fastvlm-0.5b", ["96.0 MiB"]),
        (
            "granite-vision-3.2-2b",
            "ibm-granite/granite-vision-3.2-2b",
            "granite-vision-3.2-2b",
            ["800.0 MiB"],
        ),
        (
            "granite-vision-4.1-4b",
            "ibm-granite/granite-vision-4.1-4b",
            "granite-vision-4.1-4b",
            ["320.0 MiB"],
        ),
        (
            "llava-v1.6-mistral-7b",
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava-v1.6-mistral-7b",
            ["512.0 MiB"],
        ),
        (
            "llava-v1.6-vicuna-7b",
            "llava-hf/llava-v1.6-vicuna-7b-hf",
            "llava-v1.6-vicuna-7b",
            ["2.0 GiB"],
        ),
        (
            "llava-next-video-7b",
            "llava-hf/LLaVA-NeXT-Video-7B-hf",
            "llava-next-video-7b",
            ["2.0 GiB"],
        ),
        ("internvl3-1b", "OpenGVLab/InternVL3-1B-hf", "internvl3-1b", ["48.0 MiB"]),
        ("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl-2b", ["112.0 MiB"]),
        ("smolvlm-256m", "HuggingFaceTB/SmolVLM-256M-Instruct", "smolvlm-256m", ["180.0 MiB"]),
        ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl-7b", ["224.0 MiB"]),
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", "qwen2.5-vl-3b", ["144.0 MiB"]),
        ("pixtral-12b", "mistral-community/pixtral-12b", "pixtral-12b", ["960.0 MiB"]),
        (
            "mistral-small-3.1",
            "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
            "mistral-small-3.1",
            ["960.0 MiB"],
        ),
        ("paddleocr-vl", "PaddlePaddle/PaddleOCR-VL", "paddleocr-vl", ["72.0 MiB"]),
        ("lfm2-vl-450m", "LiquidAI/LFM2-VL-450M", "lfm2-vl-450m", ["96.1 MiB"]),
        ("glm-4.1v-9b", "zai-org/GLM-4.1V-9B-Thinking", "glm-4.1v-9b", ["320.0 MiB"]),
        ("glm-4.5v", "zai-org/GLM-4.5V", "glm-4.5v", ["1.4 GiB"]),
        (
            "llama-4-scout",
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            "llama-4-scout-17b-16e",
            ["1.5 GiB"],
        ),
        (
            "perception-lm-1b",
            "facebook/Perception-LM-1B",
            "perception-lm-1b",
            ["512.0 MiB"],
        ),
        ("molmo2-4b", "allenai/Molmo2-4B", "molmo2-4b", ["1.1 GiB"]),
        ("gemma-3-4b", "google/gemma-3-4b-it", "gemma-3-4b-it", ["544.0 MiB"]),
        ("gemma-3n-e2b", "google/gemma-3n-E2B-it", "gemma-3n-e2b-it", ["160.0 MiB"]),
        ("gemma-4-e2b", "google/gemma-4-E2B-it", "gemma-4-e2b-it", ["72.0 MiB"]),
        (
            "paligemma-3b",
            "google/paligemma-3b-mix-224",
            "paligemma-3b-mix-224",
            ["18.0 MiB"],
        ),
        (
            "paligemma2-3b",
            "google/paligemma2-3b-mix-448",
            "paligemma2-3b-mix-448",
            ["208.0 MiB"],
        ),
        ("aya-vision-8b", "CohereLabs/aya-vision-8b", "aya-vision-8b", ["512.0 MiB"]),
        (
            "command-a-vision",
            "CohereLabs/command-a-vision-07-2025",
            "command-a-vision",
            ["1.0 GiB"],
        ),
        (
            "deepseek-vl-1.3b",
            "deepseek-community/deepseek-vl-1.3b-chat",
            "deepseek-vl-1.3b",
            ["768.0 MiB"],
        ),
        ("idefics2-8b", "HuggingFaceM4/idefics2-8b", "idefics2-8b", ["512.0 MiB"]),
        ("aria-25b", "rhymes-ai/Aria", "aria-25b", ["1.1 GiB"]),
        ("video-llava-7b", "LanguageBind/Video-LLaVA-7B-hf", "video-llava-7b", ["1.5 GiB"]),
        (
            "ernie-4.5-vl-28b",
            "baidu/ERNIE-4.5-VL-28B-A3B-PT",
            "ernie-4.5-vl-28b",
            ["448.0 MiB"],
        ),
        ("hunyuan-ocr", "tencent/HunyuanOCR", "hunyuan-ocr", ["768.0 MiB"]),
        ("ovis2-1b", "thisisiron/Ovis2-1B-hf", "ovis2-1b", ["48.0 MiB"]),
        (
            "phi-4-multimodal",
            "microsoft/Phi-4-multimodal-instruct",
            "phi-4-multimodal",
            ["512.0 MiB"],
        ),
        ("deepseek-vl-7b", "deepseek-community/deepseek-vl-7b-chat", "deepseek-vl-7b", ["1.9 GiB"]),
        (
            "ministral-3-3b",
            "mistralai/Ministral-3-3B-Instruct-2512-BF16",
            "ministral-3-3b",
            ["832.0 MiB"],
        ),
        ("lighton-ocr-1b", "lightonai/LightOnOCR-1B-1025", "lighton-ocr-1b", ["672.0 MiB"]),
        ("glm-ocr", "zai-org/GLM-OCR", "glm-ocr", ["512.0 MiB"]),
        ("got-ocr2", "stepfun-ai/GOT-OCR-2.0-hf", "got-ocr2", ["384.0 MiB"]),
        (
            "pp-chart2table",
            "PaddlePaddle/PP-Chart2Table_safetensors",
            "pp-chart2table",
            ["384.0 MiB"],
        ),
        ("blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b", "blip2-opt-2.7b", ["320.0 MiB"]),
        (
            "instructblip-vicuna-7b",
            "Salesforce/instructblip-vicuna-7b",
            "instructblip-vicuna-7b",
            ["512.0 MiB"],
        ),
        (
            "kosmos-2",
            "microsoft/kosmos-2-patch14-224",
            "kosmos-2-patch14-224",
            ["192.0 MiB"],
        ),
        ("janus-pro-1b", "deepseek-community/Janus-Pro-1B", "janus-pro-1b", ["768.0 MiB"]),
        ("chameleon-7b", "facebook/chameleon-7b", "chameleon-7b", ["2.0 GiB"]),
        ("fuyu-8b", "adept/fuyu-8b", "fuyu-8b", ["2.2 GiB"]),
        ("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", "qwen3-vl-2b", ["448.0 MiB"]),
        (
            "granite-docling-500m",
            "ibm-granite/granite-for-docling-500m",
            "granite-docling-500m",
            ["224.0 MiB"],
        ),
        (
            "video-llama-3-2b",
            "lkhl/VideoLLaMA3-2B-Image-HF",
            "video-llama-3-2b",
            ["224.0 MiB"],
        ),
        ("qwen2.5-omni-7b", "Qwen/Qwen2.5-Omni-7B", "qwen2.5-omni-7b", ["224.0 MiB"]),
        ("qwen3.5-4b", "Qwen/Qwen3.5-4B", "qwen3.5-4b", ["178.2 MiB"]),
        ("minicpm-v-4.6", "openbmb/MiniCPM-V-4.6", "minicpm-v-4.6", ["67.3 MiB"]),
    ],
)
def test_the_comments_of_the_recipes_hold(
    hub: Hub, name: str, model_id: str, config: str, lines: list[str]
) -> None:
    commit = hub.add(model_id, CONFIGS / config)
    path = ROOT / "recipes" / f"{name}.yaml"
    if revision := load_recipe(path).revision:
        hub.models[model_id].commits[revision] = commit
    done = hub.run("check", str(path), "--json", "--image-size", "640x480")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["model"]["model"] == model_id
    comment = path.read_text()
    text = hub.run("check", str(path)).out
    for line in lines:
        assert line in text
        assert f"KV cache {line}" in comment
    weights = text.partition("about ")[2].splitlines()[0]
    assert f"weights about {weights}" in comment
    tokens = plan["image_tokens"]["640x480"]
    assert f"{tokens} tokens" in comment
