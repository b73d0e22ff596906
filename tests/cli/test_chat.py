"""The chat's turns, without a terminal: what is asked, kept, forgotten and interrupted."""

import pytest

from tests.tiny_bundle import tiny_bundle
from vlmc.cli.chat import converse
from vlmc.runtime import Request, load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_bundle(tmp_path_factory.mktemp("bundle"), ctx=200, prefill=64), threads=1)


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "my picture.png"
    Image.new("RGB", (9, 9), "red").save(path)
    return path


def play(model, monkeypatch, lines, *, head=(), pictures=(), interrupt=None):
    """Plays typed lines; returns the requests made. ``interrupt``: (question, step) of a Ctrl-C."""
    asked = []
    typed = iter(lines)

    def answer_input(mark):
        line = next(typed, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    step = model.loop.step
    steps = []

    def counted():
        steps.append(len(asked))
        if interrupt is not None and steps.count(interrupt[0]) == interrupt[1]:
            raise KeyboardInterrupt
        step()

    def ask(turns, files):
        asked.append((list(turns), list(files)))
        return Request(messages=turns, images=files, max_new_tokens=12, ignore_eos=True)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.input", answer_input)
        patch.setattr(model.loop, "step", counted)
        converse(model, list(head), list(pictures), ask)
    assert not model.loop.busy
    return asked


def text(turns) -> list[tuple[str, str]]:
    return [(t["role"], "".join(p.get("text", "<image>") for p in t["content"])) for t in turns]


def test_turns_add_up(model, monkeypatch, capsys):
    head = [{"role": "system", "content": [{"type": "text", "text": "brief"}]}]
    asked = play(model, monkeypatch, ["one", "", "two"], head=head)
    assert text(asked[0][0]) == [("system", "brief"), ("user", "one")]
    first = model.generate(asked[0][0], max_new_tokens=12, ignore_eos=True)
    turns = text(asked[1][0])
    assert turns[:3] == [("system", "brief"), ("user", "one"), ("assistant", first.text)]
    assert turns[3] == ("user", "two")
    assert len(asked) == 2
    assert first.text in capsys.readouterr().out


def test_pictures_belong_to_the_next_question(model, monkeypatch, picture):
    lines = [f"/image '{picture}'", "what?", f"/image {picture}", "and?", "more?"]
    asked = play(model, monkeypatch, lines, pictures=[picture])
    assert [len(files) for _, files in asked] == [2, 3, 3]
    assert text(asked[0][0]) == [("user", "<image><image>what?")]
    assert text(asked[2][0])[-1] == ("user", "more?")


def test_clear_forgets_all(model, monkeypatch, picture):
    lines = ["one", f"/image {picture}", "/clear", "two"]
    asked = play(model, monkeypatch, lines)
    assert text(asked[1][0]) == [("user", "two")]
    assert asked[1][1] == []


def test_quit_end_of_input_and_ctrl_c_leave(model, monkeypatch):
    assert len(play(model, monkeypatch, ["one", "/quit", "two"])) == 1
    assert len(play(model, monkeypatch, ["one"])) == 1
    assert len(play(model, monkeypatch, ["one", KeyboardInterrupt(), "two"])) == 1


def test_unknown_commands_and_files_say_so(model, monkeypatch, capsys):
    assert play(model, monkeypatch, ["/what", "/image", "/image no.png"]) == []
    err = capsys.readouterr().err
    assert err.count("/quit leaves") == 3
    assert "no such file: no.png" in err


def test_a_question_that_is_refused_is_forgotten(model, monkeypatch, capsys):
    asked = play(model, monkeypatch, ["x" * 300, "two"])
    assert "ctx-len" in capsys.readouterr().err
    assert text(asked[1][0]) == [("user", "two")]


@pytest.mark.parametrize("at", [1, 7])
def test_ctrl_c_stops_the_answer_and_keeps_what_came(model, monkeypatch, capsys, at):
    asked = play(model, monkeypatch, ["one", "two"], interrupt=(1, at))
    turns = text(asked[1][0])
    if at == 1:  # nothing had come: the question is not kept
        assert turns == [("user", "two")]
    else:
        assert [role for role, _ in turns] == ["user", "assistant", "user"]
        whole = model.generate(asked[0][0], max_new_tokens=12, ignore_eos=True).text
        assert whole.startswith(turns[1][1])
        assert 0 < len(turns[1][1]) < len(whole)
