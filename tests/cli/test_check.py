"""``vlmc check`` and ``vlmc models`` on this machine alone."""

import json
from pathlib import Path

import pytest

from vlmc.cli import main
from vlmc.cli.sizes import read_picture_size, size_text
from vlmc.errors import VlmcError
from vlmc.families import FAMILIES

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(f"model: {CONFIGS / 'qwen2-vl-2b'}\nctx-len: 1024\nprecision: int4\n")
    return path


def test_the_plan_is_printed(recipe: Path, capsys: Capture) -> None:
    assert main(["check", str(recipe), "--image-size", "640x480"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        f"{recipe}: valid",
        "qwen2-vl (Qwen2-VL)",
        "vision fp32, language int4, embedding int8, head int8, kv-cache fp32\n",
        "ctx-len 1024, prefill-seq-len 128",
        "in   pixel_values     float32 [patches, 1176]",
        "in   position_ids            int64 [3, batch, step]",
        "in   past_key.0 ... 27       float32 [batch, 2, 1024, 128]",
        "out  logits                  float32 [batch, 151936]",
        "640x480  391",
    ):
        assert line in out


def test_pictures_that_do_not_fit_are_said_to_be_refused(recipe: Path, capsys: Capture) -> None:
    words = ["--image-size", "1920x1080", "--image-size", "10000x20", "--image-size", "28x28"]
    assert main(["check", str(recipe), *words]) == 0
    out = capsys.readouterr().out
    assert "1920x1080  refused: 2691 tokens do not fit ctx-len 1024" in out
    assert "10000x20   refused: a picture of 10000 x 20 pixels is too narrow" in out
    assert main(["check", str(recipe), *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["image_tokens"] == {"1920x1080": None, "10000x20": None, "28x28": 4}
    assert set(plan["refused"]) == {"1920x1080", "10000x20"}


def test_json_is_alone_on_stdout(recipe: Path, capsys: Capture) -> None:
    assert main(["check", str(recipe), "--json", "--set", "batch-size=3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["limits"]["batch_size"] == 3
    assert plan["model"] == {"model": "local", "revision": None, "family": "qwen2-vl"}
    assert str(CONFIGS) not in json.dumps(plan["recipe"])
    assert [program["name"] for program in plan["programs"]] == ["vision", "language"]
    assert plan["kv_cache_bytes"] == 3 * 1024 * 2 * 28 * 2 * 128 * 4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "ctx-len=99999"], "r.yaml: ctx-len: ctx-len 99999 is more than the 32768"),
        (["--set", "splitt=dual"], "did you mean 'split'?"),
        (["--image-size", "640"], "'640' is not a picture size"),
        (["--image-size", "0x5"], "'0x5' is not a picture size"),
    ],
)
def test_mistakes_exit_2(recipe: Path, words: list[str], expected: str, capsys: Capture) -> None:
    assert main(["check", str(recipe), *words]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_the_demo_recipe_is_valid(capsys: Capture) -> None:
    assert main(["check", str(ROOT / "recipes" / "demo.yaml"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["limits"] | {"max_images": 0} == {
        "prefill_seq_len": 128,
        "ctx_len": 512,
        "batch_size": 2,
        "max_images": 0,
    }


def test_models_lists_every_family(capsys: Capture) -> None:
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["families"]
    assert [row["name"] for row in rows] == list(FAMILIES)
    for row in FAMILIES.values():
        assert row.title in table
        assert all(name in table for name in row.model_types)


def test_models_tells_what_stands_behind_a_family(capsys: Capture) -> None:
    main(["models", "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["families"]}
    assert "llava-clip-llama" in rows["llava"]["evidence"]["parity"]
    assert "llava-1.5-7b" in rows["llava"]["evidence"]["real_size"]
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert "parity, real-size, measured" in next(one for one in lines if one.startswith("llava "))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 << 20, "1.5 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size_text(count) == text


def test_picture_sizes_are_width_then_height() -> None:
    assert read_picture_size("640x480") == (640, 480)
    with pytest.raises(VlmcError, match="640x480"):
        read_picture_size("640 x 480")
