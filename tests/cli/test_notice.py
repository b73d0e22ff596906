"""What is said of the programs a bundle is run by: on standard error, once; and in figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backends.kernels import KERNELS
from tests.tiny_bundle import tiny_bundle
from vlmc.backends.onnxruntime import native
from vlmc.cli import main

Capture = pytest.CaptureFixture[str]
OFF = "note: running the portable programs: VLMC_KERNELS=off\n"
QUESTION = ("--prompt", "hi", "--max-new-tokens", "2", "--threads", "1")
BENCH = ("--text-only", "--rounds", "1", "--max-new-tokens", "2", "--threads", "1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {split: tiny_bundle(folder, name=split, split=split, kernels=1.0) for split in SPLITS}
    return {**made, "without": tiny_bundle(folder, name="without")}


SPLITS = ("dual", "single")


def vlmc(capsys: Capture, *words: object) -> tuple[str, str]:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr()


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMC_KERNELS", "off")


@pytest.mark.usefixtures("off")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "words",
    [("run", *QUESTION), ("run", *QUESTION, "--json"), ("verify",), ("bench", *BENCH, "--json")],
    ids=" ".join,
)
def test_one_line_says_that_faster_programs_wait(
    capsys: Capture, folders: dict[str, Path], words: tuple[str, ...], split: str
) -> None:
    out, err = vlmc(capsys, words[0], folders[split], *words[1:])
    assert err == ("" if words == ("verify",) else OFF)  # it has no golden to run
    if "--json" in words:
        assert out.count("\n") == 1
        assert isinstance(json.loads(out), dict)


@pytest.mark.usefixtures("off")
def test_nothing_is_said_where_there_are_none(capsys: Capture, folders: dict[str, Path]) -> None:
    _, err = vlmc(capsys, "run", folders["without"], *QUESTION)
    assert err == ""


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_is_said_where_they_serve(
    capsys: Capture, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.delenv("VLMC_KERNELS", raising=False)
    _, err = vlmc(capsys, "run", folders[split], *QUESTION)
    assert err.count("\n") == (0 if KERNELS else 1)
    assert ("running the portable programs" in err) == (KERNELS is None)


@pytest.mark.parametrize("words", [("run", *QUESTION), ("bench", *BENCH)], ids=" ".join)
def test_a_switch_with_a_typing_mistake_ends_it(
    capsys: Capture,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("VLMC_KERNELS", "of")
    assert main([words[0], str(folders["dual"]), *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: VLMC_KERNELS in the environment: 'of' says neither on nor off\n")
    assert "  allowed: on, off, avx512, avx2\n  did you mean 'off'?\n" in err


@pytest.mark.parametrize("switch", ["on", "off"])
def test_bench_says_what_computed(
    capsys: Capture, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv("VLMC_KERNELS", switch)
    out, _ = vlmc(capsys, "bench", folders["dual"], *BENCH, "--json")
    values = json.loads(out)
    ours = KERNELS is not None and switch == "on"
    assert values["kernels"] == "onnxruntime" + (
        f", {native.instructions()} kernels of vlmc" if ours else ""
    )
    assert isinstance(values["spin"], bool)
    out, _ = vlmc(capsys, "bench", folders["dual"], *BENCH)
    assert f"  computed by {values['kernels']}\n" in out
