"""What surrounds a command: streams that are closed or full, and signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc.cli import main

ROOT = Path(__file__).parents[2]
ENTRY = "from vlmc.cli import script; script()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def shell(line: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A line in which ``"$@"`` is vlmc with these words."""
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-c", ENTRY, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_answer_that_nobody_can_read_is_still_given(folder):
    done = shell('"$@" >&-', "run", folder, "--prompt", "hello", "--threads", 1)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_standard_input_is_no_question(folder):
    done = shell('"$@" <&-', "run", folder, "--threads", 1)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard input: there is no question in it")


def test_a_process_that_is_done_leaves_out_only_the_freeing_of_memory():
    held = "class Held:\n  def __del__(self): print('freed')\nheld = Held()\n"
    asked = "import atexit\natexit.register(print, 'asked to be told')\n"
    command = [sys.executable, "-c", f"{held}{asked}{ENTRY}"]
    done = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["asked to be told"]
    refused = subprocess.run([*command, "verison"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stdout.splitlines() == ["asked to be told", "freed"]


@pytest.mark.parametrize("words", [("inspect",), ("run", "--prompt", "hello", "--threads", 1)])
def test_output_that_cannot_be_written_is_said_in_a_line(folder, words):
    done = shell('"$@" >/dev/full', words[0], folder, *words[1:])
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_tidies_up(monkeypatch, number):
    tidied = []

    def models() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(20)
        finally:
            tidied.append(number)

    monkeypatch.setattr("vlmc.cli.models.models", models)
    before = signal.getsignal(number)
    kept = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["models"])
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, kept)
    assert (ended.value.code, tidied) == (128 + number, [number])
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    """As ``nohup`` has it."""
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr("vlmc.cli.models.models", lambda: os.kill(os.getpid(), signal.SIGHUP))
    try:
        assert main(["models"]) == 0
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_the_demo_too_says_first_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["demo", "--out", str(tmp_path / "file" / "artifacts")]) == 2
    out, err = capsys.readouterr()
    place = tmp_path / "file"
    assert (out, err) == (
        "",
        f"error: --out {place / 'artifacts'}: '{place}' is a file, not a folder\n",
    )
