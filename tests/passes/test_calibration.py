"""The questions of a calibration: those built in, and those of a file."""

import json

import pytest
from PIL import Image

from vlmc.errors import VlmcError
from vlmc.passes.calibration import built_in, digests, read_calibration


def test_larger_checkpoints_are_asked_less_and_always_shown_a_picture():
    counts = [len(built_in(size)) for size in (1 << 20, 1 << 30, 1 << 34)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 1
    for size in (1 << 20, 1 << 34):
        kinds = {bool(asked.pictures) for asked in built_in(size)}
        assert kinds == {True, False}


def test_the_built_in_questions_never_change():
    assert digests(built_in(0)) == digests(built_in(0))
    assert len(set(digests(built_in(0)))) == 8


def write(folder, *lines):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_file_holds_messages_and_names_pictures_beside_it(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", (30, 20), 7).save(tmp_path / "in" / "a.png")
    shown = [{"type": "image", "path": "in/a.png"}, {"type": "text", "text": "What?"}]
    first = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": shown}]
    second = [{"role": "user", "content": "Why?"}]
    asked = read_calibration(write(tmp_path, json.dumps(first), "", json.dumps(second)))
    [picture] = asked[0].pictures
    assert (picture.size, picture.mode, picture.getpixel((0, 0))) == ((30, 20), "RGB", (7, 7, 7))
    assert [message["role"] for message in asked[0].messages] == ["system", "user"]
    assert asked[0].messages[1]["content"] == [{"type": "image"}, shown[1]]
    assert asked[1].messages[0]["content"] == [{"type": "text", "text": "Why?"}]
    before = digests(asked)
    Image.new("L", (30, 20), 8).save(tmp_path / "in" / "a.png")
    after = digests(read_calibration(tmp_path / "questions.jsonl"))
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "there is no question"),
        (["", "  "], "there is no question"),
        (["[]", "oops"], "questions.jsonl:1: there is no message"),
        (['[{"role": "user", "content": "a"}]', "oops"], "questions.jsonl:2: this is not JSON"),
        (['{"messages": []}'], "messages are a list"),
        (
            ['[{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]'],
            "no.png' does not exist",
        ),
    ],
)
def test_mistakes_name_the_line(tmp_path, lines, words):
    with pytest.raises(VlmcError) as caught:
        read_calibration(write(tmp_path, *lines))
    assert words in str(caught.value)
