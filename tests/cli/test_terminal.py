"""``vlmc run`` at a terminal, as a process of its own."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle

ROOT = Path(__file__).parents[2]
ENTRY = "from vlmc.cli import script; script()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (12, 9), "red").save(path)
    return path


class Terminal:
    """A chat in a pseudo terminal."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, "run", str(folder), "--threads", "1", *words],
            cwd=ROOT,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def expect(self, words: str) -> str:
        while words.encode() not in self.seen:
            data = os.read(self.master, 4096)
            assert data, self.seen
            self.seen += data
        before, _, self.seen = self.seen.partition(words.encode())
        return before.decode(errors="replace")

    def say(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def close(self) -> int:
        code = self.process.wait(timeout=20)
        os.close(self.master)
        return code


def test_a_chat_keeps_its_turns_and_pictures(folder, picture):
    chat = Terminal(folder, "--max-new-tokens", "3", "--ignore-eos")
    chat.expect("/quit leaves.")
    chat.expect("> ")
    chat.say("hello")
    chat.expect("> ")
    chat.say("/image no.png")
    chat.expect("no such file: no.png")
    chat.expect("> ")
    chat.say(f"/image {picture}")
    chat.expect("> ")
    chat.say("and this?")
    chat.expect("> ")
    chat.say("x" * 200)  # too long: said so, and forgotten
    chat.expect("ctx-len")
    chat.expect("> ")
    chat.say("/clear")
    chat.expect("> ")
    chat.say("/what")
    chat.expect("/quit leaves.")
    chat.expect("> ")
    chat.say("/quit")
    assert chat.close() == 0


def test_ctrl_c_at_the_prompt_leaves(folder):
    chat = Terminal(folder)
    chat.expect("> ")
    # Python misses a signal that comes between its prompt and its wait for a key: press again.
    for _ in range(5):
        os.kill(chat.process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            chat.process.wait(timeout=4)
            break
    assert chat.close() == 0
