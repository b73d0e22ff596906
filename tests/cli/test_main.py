"""The frame of the command line: table, exit codes, streams."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlmc
from vlmc.cli import COMMANDS, main
from vlmc.errors import VlmcError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_row_is_a_command_with_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = getattr(importlib.import_module(f"vlmc.cli.{name}"), name)
    assert callable(function)
    assert main([name, "--help"]) == 0
    assert f"Usage: vlmc {name}" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == listed
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlmc {vlmc.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["biuld"], "did you mean 'build'?"),
        (["biuld"], "unknown command 'biuld'"),
        (["chekc", "x.yaml"], "did you mean 'check'?"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "x.yaml", "--sett", "a=1"], "--set"),
        (["--versoin"], "--version"),
        (["check", "x.yaml", "y.yaml"], "unexpected extra argument"),
        (["check", "x.yaml", "--set"], "requires an argument"),
    ],
)
def test_usage_mistakes_exit_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def fails(error: BaseException) -> object:
    def models() -> None:
        raise error

    return models


def test_a_users_mistake_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake = VlmcError("wrong", at="here", allowed=["right"], got="rigth")
    monkeypatch.setattr("vlmc.cli.models.models", fails(mistake))
    assert main(["models"]) == 2
    assert capsys.readouterr().err == (
        "error: here: wrong\n  allowed: right\n  did you mean 'right'?\n"
    )


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmc.cli.models.models", fails(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError, match="bug"):
        main(["models"])


def test_an_interrupt_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlmc.cli.models.models", fails(KeyboardInterrupt()))
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import os, sys, vlmc.cli\nos.close(0)\nsys.exit(vlmc.cli.main(['models']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_folder_that_cannot_be_made_is_said_before_anything_is_built(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, file = tmp_path / "recipe.yaml", tmp_path / "file"
    recipe.write_text("model: nobody/nothing\n", encoding="utf-8")
    file.write_text("", encoding="utf-8")

    assert main(["build", str(recipe), "--offline", option, str(file / "artifacts")]) == 2

    assert f"error: {option} {file / 'artifacts'}: '{file}' is a file" in capsys.readouterr().err
