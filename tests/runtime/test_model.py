"""The Python interface: requests, limits, stop strings, streams."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from tests.tiny_processor import END
from vlmc.bundle.manifest import LogitsSpec
from vlmc.errors import VlmcError
from vlmc.runtime import Request, load


def picture(seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model(folder):
    return load(folder.parent, threads=1)


def test_an_answer_is_one_json_object(model):
    answer = model.generate(prompt="hello", images=[picture()], max_new_tokens=5, ignore_eos=True)
    values = json.loads(json.dumps(answer.to_json()))
    assert list(values) == [
        "text",
        "token_ids",
        "prompt_token_ids",
        "finish_reason",
        "timings",
        "usage",
    ]
    stages = ["load", "preprocess", "vision", "prefill", "decode", "ttft"]
    assert list(values["timings"]) == stages
    assert all(values["timings"][stage] > 0 for stage in stages)
    assert values["timings"]["ttft"] >= values["timings"]["prefill"]
    assert values["usage"] == {
        "prompt_tokens": len(values["prompt_token_ids"]),
        "image_tokens": 4,
        "completion_tokens": 5,
    }
    assert values["text"] == model.prompts.decode(values["token_ids"])


def test_pictures_come_as_paths_bytes_or_pictures_and_by_messages(model, tmp_path):
    image = picture(3)
    path = tmp_path / "a.png"
    image.save(path)
    expected = model.generate(prompt="x", images=[image], max_new_tokens=4).token_ids
    parts = [{"type": "image"}, {"type": "text", "text": "x"}]
    named = [{"type": "image", "path": "a.png"}, parts[1]]
    for messages, images, folder in (
        (None, [path], None),
        (None, [str(path)], None),
        (None, [path.read_bytes()], None),
        ([{"role": "user", "content": parts}], [image], None),
        ([{"role": "user", "content": named}], [], tmp_path),
    ):
        request = Request(
            messages=messages,
            prompt=None if messages else "x",
            images=images,
            max_new_tokens=4,
            folder=folder,
        )
        assert model.start(request).finish().token_ids == expected
    with pytest.raises(VlmcError, match="cannot be named here"):
        model.start(Request(messages=[{"role": "user", "content": named}], files=False))


def test_the_end_token_ends_and_is_left_out(tmp_path, model):
    """The model is made to say the end token: the one it would say third becomes it."""
    free = model.generate(prompt="hello", max_new_tokens=8, ignore_eos=True).token_ids
    at = next(i for i in range(2, 8) if free[i] not in free[:i])
    generation = model.manifest.generation
    ended = model.manifest.model_copy(
        update={"generation": generation.model_copy(update={"eos_token_ids": (END, free[at])})}
    )
    model.manifest, kept = ended, model.manifest
    try:
        answer = model.generate(prompt="hello", max_new_tokens=8)
        assert answer.token_ids == free[:at]
        assert answer.finish_reason == "stop"
        assert answer.usage.completion_tokens == at
        again = model.generate(prompt="hello", max_new_tokens=8, ignore_eos=True)
        assert again.token_ids == free
        assert again.finish_reason == "length"
        exactly = model.generate(prompt="hello", max_new_tokens=at)
        assert exactly.finish_reason == "length"
    finally:
        model.manifest = kept


def ascii_tokens(model, monkeypatch, text):
    """Makes the model say ``text``, one token a character."""
    from vlmc.runtime.sampling import Sampler

    ids = [model.prompts._tokenizer._tokenizer.encode(c).ids[0] for c in text]
    said = iter(ids)
    monkeypatch.setattr(Sampler, "choose", lambda self, logits: next(said))


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["lo w"], "hel"),
        (["world"], "hello "),
        (["xx", "o"], "hell"),
        (["h"], ""),
        (["hello worlds"], "hello world"),
        ([], "hello world"),
    ],
)
def test_a_stop_string_over_many_tokens(model, monkeypatch, stop, text):
    ascii_tokens(model, monkeypatch, "hello world")
    stream = model.stream(prompt="x", max_new_tokens=11, stop=stop)
    pieces = list(stream)
    answer = stream.answer
    assert "".join(pieces) == answer.text == text
    met = text != "hello world"
    assert answer.finish_reason == ("stop" if met else "length")
    assert model.prompts.decode(answer.token_ids).startswith(text)
    assert not model.loop.busy


def test_a_character_of_many_tokens_is_streamed_whole(model, monkeypatch):
    tokenizer = model.prompts._tokenizer._tokenizer
    said = iter(tokenizer.encode("añ€😀b").ids)
    from vlmc.runtime.sampling import Sampler

    monkeypatch.setattr(Sampler, "choose", lambda self, logits: next(said))
    stream = model.stream(prompt="x", max_new_tokens=11)
    assert list(stream) == ["a", "ñ", "€", "😀", "b"]


def test_a_character_cut_by_the_limit_is_marked(model, monkeypatch):
    tokenizer = model.prompts._tokenizer._tokenizer
    said = iter(tokenizer.encode("a€").ids)
    from vlmc.runtime.sampling import Sampler

    monkeypatch.setattr(Sampler, "choose", lambda self, logits: next(said))
    assert model.generate(prompt="x", max_new_tokens=3).text == "a\N{REPLACEMENT CHARACTER}"


def test_sampling_is_each_requests_own(model):
    values = {"prompt": "hello", "temperature": 2.0, "max_new_tokens": 12, "ignore_eos": True}
    first = model.generate(**values, seed=1)
    assert model.generate(**values, seed=1).token_ids == first.token_ids
    assert model.generate(**values, seed=2).token_ids != first.token_ids
    greedy = model.generate(prompt="hello", max_new_tokens=12, ignore_eos=True)
    assert greedy.token_ids != first.token_ids
    one = model.generate(**{**values, "temperature": 0.001}, seed=4)
    assert one.token_ids == greedy.token_ids


def test_the_penalty_counts_image_places_too(model):
    stream = model.stream(prompt="ab", images=[picture()], repetition_penalty=4.0)
    ids = stream.job.prompt.token_ids.tolist()
    assert 256 in ids
    scores = stream.job.sampler.rules.apply(np.ones(300, np.float32))
    assert np.flatnonzero(scores == 0.25).tolist() == sorted(set(ids))
    stream.close()


def test_a_checkpoints_rules_are_followed_unless_the_request_says_otherwise(model):
    asked = {"prompt": "hello", "max_new_tokens": 12, "ignore_eos": True}
    plain = model.generate(**asked).token_ids
    model.rules = LogitsSpec(repetition_penalty=0.01)
    try:
        ruled = model.generate(**asked).token_ids
        assert ruled != plain
        assert model.generate(**asked, repetition_penalty=1).token_ids == plain
        model.rules = LogitsSpec(suppress_tokens=(plain[0],), forced_eos_token_ids=(7,))
        other = model.generate(**asked).token_ids
        assert plain[0] not in other
        assert other[-1] == 7
    finally:
        model.rules = LogitsSpec()
    assert model.generate(**asked).token_ids == plain


def test_the_answer_may_reach_the_end_of_the_cache(model):
    prompt = model.prompt(prompt="hello")
    left = 96 - len(prompt.token_ids)
    answer = model.generate(prompt="hello", max_new_tokens=left, ignore_eos=True)
    assert len(answer.token_ids) == left
    more = model.generate(prompt="hello", max_new_tokens=10_000)
    assert more.token_ids == answer.token_ids[: len(more.token_ids)]
    with pytest.raises(VlmcError, match="do not fit ctx-len 96"):
        model.generate(prompt="hello", max_new_tokens=left + 1, ignore_eos=True)


def test_a_prompt_as_long_as_the_cache_is_refused(model):
    rest = len(model.prompt(prompt="").token_ids)
    assert model.generate(prompt="x" * (95 - rest), max_new_tokens=1).usage.prompt_tokens == 95
    with pytest.raises(VlmcError, match=r"takes 96 tokens.*ctx-len is 96"):
        model.generate(prompt="x" * (96 - rest), max_new_tokens=1)


def test_too_many_images_are_refused_before_they_are_read(model):
    with pytest.raises(VlmcError, match=r"4 images in one prompt, this bundle takes 3"):
        model.generate(prompt="x", images=["no such file"] * 4)


def test_a_picture_that_cannot_be_read_is_named(model, tmp_path):
    with pytest.raises(VlmcError, match=r"images\[1\].*does not exist"):
        model.generate(prompt="x", images=[picture(), tmp_path / "no.png"])
    with pytest.raises(VlmcError, match=r"requests\[1\]: images\[0\]"):
        model.generate_batch([Request(prompt="x"), Request(prompt="x", images=[b"no picture"])])
    assert not model.loop.busy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either messages or a prompt"),
        ({"messages": [], "prompt": "x"}, "either messages or a prompt"),
        ({"messages": []}, "no message"),
        ({"prompt": "x", "images": "a.png"}, "images are a list"),
        ({"prompt": "x", "images": [3]}, r"images\[0\]"),
        ({"prompt": "x", "tempreture": 1}, "did you mean 'temperature'"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "max_new_tokens": 0}, "max-new-tokens"),
        ({"prompt": 3}, "text is a string"),
    ],
)
def test_requests_that_make_no_sense_are_refused(model, options, words):
    with pytest.raises(VlmcError, match=words):
        model.generate(**options)
    assert not model.loop.busy


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, 5000])
def test_threads_are_checked(folder, threads):
    with pytest.raises(VlmcError) as caught:
        load(folder, threads=threads)
    assert caught.value.at == "threads"


def test_digests_are_checked_when_asked(tmp_path):
    folder = tiny_bundle(tmp_path)
    path = folder / "processor/chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "Assistant"))
    load(folder, threads=1)
    with pytest.raises(VlmcError, match="chat_template"):
        load(folder, threads=1, verify=True)


def test_a_stream_that_is_closed_is_over(model):
    stream = model.stream(prompt="hello", max_new_tokens=50, ignore_eos=True)
    with stream:
        next(stream)
    assert list(stream) == []
    with pytest.raises(VlmcError, match="not finished"):
        _ = stream.answer
    assert not model.loop.busy
