import base64
import json
from pathlib import Path

import pytest

from vlmc.errors import VlmcError
from vlmc.runtime.messages import normalize_messages, parse_messages, simple_message

PNG = b"\x89PNG not really"
ENCODED = base64.b64encode(PNG).decode()


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def sources(*parts, **options):
    return normalize_messages(user(*parts), **options)[1]


def test_simple_message():
    assert simple_message("Hi", 2) == user(
        {"type": "image"}, {"type": "image"}, {"type": "text", "text": "Hi"}
    )
    assert simple_message("", 0) == user({"type": "text", "text": ""})


def test_strings_and_parts_are_kept():
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x\0y 你"}]},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": []},
    ]
    assert parse_messages(json.dumps(chat)) == (chat, ())


def test_sources_are_listed_in_order(tmp_path):
    messages, found = normalize_messages(
        [
            *user({"type": "image"}, {"type": "image", "path": "b c.png"}),
            *user(
                {"type": "image", "url": "file:///d/e%20f.png"},
                {"type": "image", "image": str(tmp_path / "g.png")},
                {"type": "image_url", "image_url": {"url": "h.png", "detail": "low"}},
                {"type": "image_url", "image_url": f"data:image/png;base64,{ENCODED}"},
                {"type": "image", "base64": ENCODED},
                {"type": "image", "url": None},
            ),
        ],
        [Path("first.png"), Path("last.png")],
        folder=tmp_path,
    )
    assert [source.path for source in found] == [
        Path("first.png"),
        tmp_path / "b c.png",
        Path("/d/e f.png"),
        tmp_path / "g.png",
        tmp_path / "h.png",
        None,
        None,
        Path("last.png"),
    ]
    assert [source.data for source in found[5:7]] == [PNG, PNG]
    assert found[1].at == "messages[0].content[1].path"
    assert all(part == {"type": "image"} for message in messages for part in message["content"])


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{ENCODED}",
        f"DATA:image/jpeg;charset=x;BASE64,{ENCODED}",
        "data:image/png;base64," + ENCODED.replace("=", "%3D"),
        "data:image/png,%89PNG%20not%20really",
    ],
)
def test_data_uris(uri):
    assert sources({"type": "image", "url": uri})[0].data == PNG


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "messages are a list, got an object"),
        ([], "there is no message"),
        (["x"], r"messages\[0\]: an object is needed, got a string"),
        ([{"content": "x"}], r"messages\[0\].role: a role is a string, got nothing"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role: a role is a string, got a number"),
        ([{"role": "usr", "content": "x"}], "did you mean 'user'"),
        ([{"role": "user"}], r"messages\[0\].content: .*got nothing"),
        ([{"role": "user", "content": True}], r"\.content: .*got a truth value"),
        ([{"role": "user", "content": "x", "name": "y"}], r"messages\[0\].name: unknown key"),
        (user("x"), r"content\[0\]: an object is needed"),
        (user({"text": "x"}), r"content\[0\].type: a part's type is a string"),
        (user({"type": "video"}), r"unknown part 'video'\n  allowed: text, image, image_url"),
        (user({"type": "text"}), r"content\[0\].text: a text is a string, got nothing"),
        (user({"type": "text", "text": ["x"]}), "a text is a string, got a list"),
        (user({"type": "text", "text": "\ud800"}), r"text: half of a surrogate pair"),
        ([{"role": "user", "content": "a\udfff"}], "half of a surrogate pair at character 1"),
        (user({"type": "image", "path": "a", "url": "b"}), "one source is enough, got path, url"),
        (user({"type": "image", "path": 3}), r"path: an image is named by a string, got a number"),
        (user({"type": "image", "path": ""}), "named by a string"),
        (user({"type": "image", "path": "a\0"}), "NUL"),
        (user({"type": "image", "size": 3}), r"content\[0\].size: unknown key 'size'"),
        (user({"type": "image", "url": "http://x/y.png"}), "not fetched from the network"),
        (user({"type": "image", "path": "HTTPS://x/y.png"}), "not fetched from the network"),
        (user({"type": "image", "url": "ftp://x/y.png"}), "unknown scheme 'ftp'"),
        (user({"type": "image", "url": "file://host/y.png"}), "'host' is another machine"),
        (user({"type": "image", "base64": "?"}), "base64: this is not base64"),
        (user({"type": "image", "base64": "A"}), "this is not base64"),
        (user({"type": "image", "url": "data:image/png;base64,"}), "the image is empty"),
        (user({"type": "image", "url": "data:image/png;base64"}), "comma"),
        (user({"type": "image", "url": "data:text/html,x"}), "holds 'text/html', not an image"),
        (user({"type": "image_url"}), r"image_url: an object is needed, got nothing"),
        (user({"type": "image_url", "image_url": {}}), "named by a string, got nothing"),
        (user({"type": "image_url", "image_url": {"ul": "x"}}), "did you mean 'url'"),
        (user({"type": "image"}), "no source and no file is left"),
    ],
)
def test_mistakes_name_their_place(value, message):
    with pytest.raises(VlmcError, match=message):
        normalize_messages(value)


def test_too_many_files():
    with pytest.raises(VlmcError, match="2 image files for 1 image parts without a source"):
        normalize_messages(user({"type": "image"}), [Path("a"), Path("b")])


@pytest.mark.parametrize("name", ["a.png", "/etc/passwd", "file:///etc/passwd", "../a.png"])
def test_files_can_be_refused(name):
    with pytest.raises(VlmcError, match="a file cannot be named here"):
        sources({"type": "image", "url": name}, files=False)
    with pytest.raises(VlmcError, match="not fetched from the network"):
        sources({"type": "image", "url": "http://x"}, files=False)
    assert sources({"type": "image", "base64": ENCODED}, files=False)[0].data == PNG


def test_too_large_an_image(monkeypatch):
    monkeypatch.setattr("vlmc.runtime.messages.MAX_IMAGE_BYTES", 8)
    for url in (f"data:image/png;base64,{ENCODED}", "data:image/png," + "x" * 9):
        with pytest.raises(VlmcError, match="8 is the limit"):
            sources({"type": "image", "url": url})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is not JSON"),
        ("", "this is not JSON"),
        (b"\xff\xfe\xfa", "chat.json: "),
        ("[" * 100_000, "nested too deeply"),
        ('[{"role": "user", "content": "\\ud800"}]', "surrogate"),
    ],
)
def test_text_that_is_no_chat(text, message):
    with pytest.raises(VlmcError, match=message):
        parse_messages(text, at="chat.json")


def test_a_prompt_that_is_no_text():
    with pytest.raises(VlmcError, match="--prompt: half of a surrogate pair"):
        simple_message("\udcff", 0)


def test_files_come_back_as_they_were_given():
    """Callers tell their own objects by identity."""
    given = Path("x.png")
    assert sources({"type": "image"}, images=[given])[0].path is given
