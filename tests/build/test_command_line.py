"""``vlmc build`` as a process; ``vlmc run`` on a bundle just built, against transformers."""

import json
import subprocess
import sys

import pytest

from tests.backends.kernels import KERNELS
from tests.build.questions import QUESTIONS
from vlmc.cli import main

pytestmark = pytest.mark.build
NAMES = ("llava-siglip-mistral", "internvl", "qwen2-vl")


@pytest.fixture
def pictures(tmp_path):
    """The pictures of "turns", as files."""
    paths = []
    for number, image in enumerate(QUESTIONS["turns"].pictures()):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    return paths


def run(capsys, *words) -> dict:
    capsys.readouterr()  # what the build said
    code = main(["run", *map(str, words), "--json", "--max-new-tokens", "24", "--threads", "1"])
    out, err = capsys.readouterr()
    assert code == 0
    assert err.count("\n") == (0 if KERNELS else 1)  # that the portable programs run
    return json.loads(out)


def agrees(answer, expected) -> None:
    assert answer["prompt_token_ids"] == expected.prompt_token_ids
    assert answer["token_ids"] == expected.token_ids
    assert answer["finish_reason"] == ("length" if len(expected.token_ids) == 24 else "stop")
    tokens = sum(len(rows) for rows in expected.features)
    assert answer["usage"] == {
        "prompt_tokens": len(expected.prompt_token_ids),
        "image_tokens": tokens,
        "completion_tokens": len(expected.token_ids),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_in_a_file_is_answered_as_transformers_does(workshop, capsys, pictures, name):
    bundle = workshop.build(name).bundle
    places = iter(path.name for path in pictures)
    messages = [
        {
            **message,
            "content": [
                {**part, "image": next(places)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in QUESTIONS["turns"].messages
    ]
    file = pictures[0].parent / "chat.json"
    file.write_text(json.dumps(messages), encoding="utf-8")
    answer = run(capsys, bundle, "--messages", file)
    agrees(answer, workshop.expected(name, "turns"))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_come_before_the_prompt(workshop, capsys, pictures, name):
    made = workshop.build(name)
    words = [word for path in pictures for word in ("--image", path)]
    answer = run(capsys, made.bundle, *words, "--prompt", QUESTIONS["two before"].words)
    agrees(answer, workshop.expected(name, "two before"))


def test_a_build_that_is_done_says_no_more(workshop, tmp_path):
    """Libraries written in C++ complain where the interpreter ends without tidying up."""
    recipe = workshop.recipe("llava-clip-llama")
    command = [sys.executable, "-m", "vlmc", "build", str(recipe), "--until", "simplify"]
    command += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    passes = [line.split()[0] for line in done.stderr.splitlines() if line.strip()]
    assert passes == ["load", "transform", "export", "simplify"]
