"""``vlmc run``, ``inspect``, ``verify`` and ``bench`` on the tiny bundle."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.bundle.test_goldens import golden
from tests.tiny_bundle import tiny_bundle
from vlmc.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), goldens=golden)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    levels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


def vlmc(capsys, *words) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys, *words) -> dict:
    code, out, err = vlmc(capsys, "run", *words, "--json", "--threads", 1)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    return json.loads(out)


def test_one_answer_streamed_is_the_one_in_json(capsys, folder, picture):
    words = (folder, "--image", picture, "--prompt", "hello", "--max-new-tokens", 6)
    values = answer(capsys, *words)
    assert values["usage"]["image_tokens"] == 4
    assert len(values["token_ids"]) == values["usage"]["completion_tokens"] <= 6
    code, out, err = vlmc(capsys, "run", *words, "--threads", 1)
    assert (code, out, err) == (0, values["text"] + "\n", "")


def test_a_name_folder_runs_its_latest(capsys, folder):
    words = ("--prompt", "hello", "--max-new-tokens", 3)
    newest = answer(capsys, folder.parent, *words)
    assert newest["token_ids"] == answer(capsys, folder, *words)["token_ids"]


def test_messages_and_their_pictures(capsys, folder, picture, tmp_path):
    shutil.copy(picture, tmp_path / "b.png")
    part = {"type": "text", "text": "hello"}
    file = tmp_path / "chat.json"
    expected = answer(capsys, folder, "--image", picture, "--prompt", "hello")
    given = {"type": "image"}, ("--image", picture)
    named = {"type": "image", "path": "b.png"}, ()
    for image, extra in (given, named):
        file.write_text(json.dumps([{"role": "user", "content": [image, part]}]))
        found = answer(capsys, folder, "--messages", file, *extra)
        assert found["token_ids"] == expected["token_ids"]
    system = answer(capsys, folder, "--messages", file, "--system", "be brief")
    more = len(system["prompt_token_ids"]) - len(expected["prompt_token_ids"])
    assert more == len("system:be brief")


def test_the_question_may_come_from_standard_input(capsys, folder, monkeypatch):
    expected = answer(capsys, folder, "--prompt", "two\nlines")
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert answer(capsys, folder)["prompt_token_ids"] == expected["prompt_token_ids"]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_a_prompt_without_words_is_what_the_template_makes_of_it(capsys, folder, tmp_path, text):
    file = tmp_path / "m.json"
    file.write_text(json.dumps([{"role": "user", "content": text}]))
    expected = answer(capsys, folder, "--messages", file)["prompt_token_ids"]
    assert expected
    assert answer(capsys, folder, "--prompt", text)["prompt_token_ids"] == expected


def test_nothing_on_standard_input_is_no_question(capsys, folder, picture, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = vlmc(capsys, "run", folder)
    assert (code, out) == (2, "")
    assert err == "error: standard input: there is no question in it\n  give --prompt\n"
    assert answer(capsys, folder, "--image", picture)["usage"]["image_tokens"] == 4
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert answer(capsys, folder)["usage"]["image_tokens"] == 0


def test_standard_input_must_be_text(capsys, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8"))
    code, out, err = vlmc(capsys, "run", folder)
    assert (code, out) == (2, "")
    assert "standard input: this is not text" in err


def test_sampling_options_reach_the_sampler(capsys, folder):
    words = (folder, "--prompt", "hi", "--max-new-tokens", 9, "--ignore-eos")
    hot = (*words, "--temperature", 60, "--top-k", 50, "--top-p", 0.99, "--min-p", 0.001)
    one = answer(capsys, *hot, "--seed", 1)["token_ids"]
    assert answer(capsys, *hot, "--seed", 1)["token_ids"] == one
    assert answer(capsys, *hot, "--seed", 2)["token_ids"] != one
    greedy = answer(capsys, *words)
    assert len(greedy["token_ids"]) == 9
    assert greedy["finish_reason"] == "length"
    penalized = answer(capsys, *words, "--repetition-penalty", 50)["token_ids"]
    assert len(set(penalized)) == 9
    sampled = answer(capsys, *words, "--sample", "--temperature", 60, "--seed", 1)["token_ids"]
    assert sampled == answer(capsys, *words, "--temperature", 60, "--seed", 1)["token_ids"]
    stopped = answer(capsys, *words, "--stop", greedy["text"][1])
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == greedy["text"].split(greedy["text"][1])[0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--prompt", "x" * 100], "ctx-len"),
        (["--prompt", "x", "--image", "no.png"], "does not exist"),
        (["--prompt", "x", "--messages", "m.json"], "exclude each other"),
        (["--messages", "no.json"], "no.json: cannot read it"),
        (["--prompt", "x", "--ignore-eos"], "--ignore-eos needs --max-new-tokens"),
        (["--prompt", "x", "--temperature", "nan"], "temperature"),
        (["--prompt", "x", "--top-k", "0"], "top_k"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max-new-tokens"),
        (["--prompt", "x", "--threads", "0"], "threads"),
        (["--prompt", "x", "--tempreture", "1"], "--tempreture"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(capsys, folder, words, complaint):
    code, out, err = vlmc(capsys, "run", folder, *words)
    assert (code, out) == (2, "")
    assert complaint in err
    assert "Traceback" not in err


def test_messages_may_begin_with_a_byte_order_mark(capsys, folder, tmp_path):
    """As editors on Windows write it; a recipe's may too."""
    file = tmp_path / "m.json"
    file.write_text(json.dumps([{"role": "user", "content": "hello"}]), encoding="utf-8-sig")
    found = answer(capsys, folder, "--messages", file)
    assert found["token_ids"] == answer(capsys, folder, "--prompt", "hello")["token_ids"]


@pytest.mark.parametrize("text", ["", "{", "{}", '"x"', "[" * 100_000])
def test_messages_that_are_none_are_refused(capsys, folder, tmp_path, text):
    file = tmp_path / "m.json"
    file.write_text(text)
    code, out, err = vlmc(capsys, "run", folder, "--messages", file)
    assert (code, out) == (2, "")
    assert "m.json" in err


def test_what_is_no_bundle_is_refused_by_every_command(capsys, tmp_path):
    for words in (["run", "--prompt", "x"], ["run"], ["inspect"], ["verify"], ["bench"]):
        code, out, err = vlmc(capsys, *words, tmp_path)
        assert (code, out) == (2, "")
        assert f"error: {tmp_path}: not a bundle" in err


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom vlmc.cli import main\n"
        "assert main(['run', '--help']) == 0\n"
        "heavy = {'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'jinja2', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_running_imports_no_builders(folder):
    code = (
        "import sys\nfor name in ('torch', 'transformers', 'onnx', 'safetensors', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from vlmc.cli import main\n"
        f"assert main(['run', {str(folder)!r}, '--prompt', 'x', '--max-new-tokens', '2']) == 0\n"
        f"assert main(['verify', {str(folder)!r}]) == 0\n"
        f"assert main(['inspect', {str(folder)!r}]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_inspect_says_what_is_there(capsys, folder):
    code, out, _ = vlmc(capsys, "inspect", folder)
    assert code == 0
    listed = ("ctx-len 96", "batch-size 3", "program vision", "pixel_values float32")
    for words in (*listed, folder.name):
        assert words in out
    code, out, _ = vlmc(capsys, "inspect", folder.parent, "--json")
    values = json.loads(out)
    assert values["path"] == str(folder)
    assert values["kv_cache_size"] == 3 * 4 * 2 * 96 * 8 * 4
    sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
    assert values["size"] == sum(sizes) - (folder / "manifest.json").stat().st_size


def test_verify_runs_the_goldens(capsys, folder):
    code, out, _ = vlmc(capsys, "verify", folder)
    assert code == 0
    assert "DIFFER" not in out
    assert "picture (by this bundle at build)" in out
    code, out, _ = vlmc(capsys, "verify", folder, "--json")
    values = json.loads(out)
    assert (code, values["ok"], values["damage"]) == (0, True, None)
    assert [case["name"] for case in values["goldens"]] == ["picture", "text"]
    assert all(finding["ok"] for case in values["goldens"] for finding in case["findings"])


def test_verify_names_damage_and_exits_2(capsys, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "weights/all.bin"
    data = bytearray(weights.read_bytes())
    data[5000] ^= 1
    weights.write_bytes(data)
    code, out, _ = vlmc(capsys, "verify", copy)
    assert code == 2
    assert "weights/all.bin" in out
    code, out, _ = vlmc(capsys, "verify", copy, "--json")
    values = json.loads(out)
    assert (code, values["ok"], values["goldens"]) == (2, False, [])
    assert "weights/all.bin" in values["damage"]


def test_run_hashes_files_when_asked(capsys, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    template = copy / "processor/chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "Assistant"))
    assert vlmc(capsys, "run", copy, "--prompt", "x", "--max-new-tokens", 1)[0] == 0
    code, out, err = vlmc(capsys, "run", copy, "--prompt", "x", "--verify")
    assert (code, out) == (2, "")
    assert "processor/chat_template.jinja" in err


def test_verify_finds_an_answer_that_differs(capsys, tmp_path):
    def wrong(folder, draft):
        golden(folder, draft, prompt_token_ids=(1, 2, 3))

    folder = tiny_bundle(tmp_path, goldens=wrong)
    code, out, _ = vlmc(capsys, "verify", folder)
    assert code == 2
    assert "DIFFER picture" in out
    assert "DIFFER prompt" in out
    assert "ok    text" in out


def test_a_case_that_cannot_run_is_a_finding(capsys, tmp_path):
    def too_long(folder, draft):
        messages = [{"role": "user", "content": "x" * 200}]
        golden(folder, draft, messages=messages, images=(), pixels=(), features=())

    folder = tiny_bundle(tmp_path, goldens=too_long)
    code, out, _ = vlmc(capsys, "verify", folder, "--json")
    values = json.loads(out)
    assert (code, values["ok"]) == (2, False)
    assert [case["ok"] for case in values["goldens"]] == [False, True]


def test_bench_measures_each_stage(capsys, folder, picture):
    words = ("--rounds", 2, "--max-new-tokens", 4, "--threads", 1)
    code, out, err = vlmc(capsys, "bench", folder, *words, "--image", picture, "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["usage"]["completion_tokens"] == 4
    assert values["usage"]["image_tokens"] == 4
    assert set(values["seconds"]) == {"preprocess", "vision", "prefill", "decode", "ttft"}
    assert all(seconds > 0 for seconds in values["seconds"].values())
    assert values["decode_rate"] == pytest.approx(3 / values["seconds"]["decode"])
    assert values["cold_start"]["peak_memory"] > 20 << 20
    assert values["cold_start"]["wall"] > values["cold_start"]["ttft"]
    code, out, _ = vlmc(capsys, "bench", folder, *words, "--text-only")
    assert code == 0
    assert "decode rate" in out
    assert "0 of images" in out


def test_bench_says_what_its_fresh_process_said(capsys, folder, tmp_path):
    wrong = (["--image", tmp_path / "no.png"], ["--text-only", "--threads", 0])
    for words in wrong:
        _, _, expected = vlmc(capsys, "run", folder, "--prompt", "x", *words[-2:])
        assert vlmc(capsys, "bench", folder, *words) == (2, "", expected)


def test_a_folder_whose_name_is_no_text_is_refused(capsys, folder, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(folder, odd)
    code, out, err = vlmc(capsys, "run", odd, "--prompt", "x", "--threads", 1)
    assert (code, out) == (2, "")
    assert "its name is not text in UTF-8" in err


@pytest.mark.parametrize("name", ["images.json", "prompt.json"])
def test_a_file_of_the_processor_that_is_damaged_is_named(capsys, folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    file = copy / "processor" / name
    file.write_bytes(b"[" + file.read_bytes()[1:])
    code, out, err = vlmc(capsys, "run", copy, "--prompt", "x", "--threads", 1)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: processor/{name}: Invalid JSON")


def test_bench_refuses_nothing_to_measure(capsys, folder):
    code, _, err = vlmc(capsys, "bench", folder, "--rounds", 0)
    assert code == 2
    assert "--rounds" in err
