"""Greedy answers against plain numpy, however the work is cut up."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from tests.tiny_oracle import greedy, logits, see
from tests.tiny_processor import END
from vlmc.errors import VlmcError
from vlmc.runtime import Request, load
from vlmc.runtime.positions import prompt_positions

SHAPES = [("dual", False), ("dual", True), ("single", False), ("single", True)]


def picture(seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    return Image.fromarray(levels)


def expected(model, prompt, count, ends=(END,)):
    positions, following = prompt_positions(prompt, model.manifest.positions)
    return greedy(prompt, positions, following, count, ends)


def chat(*parts) -> list:
    content = [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


CHATS = [
    chat("hello"),
    chat(None, "hello there"),
    chat(None, None, "two at once"),
    chat("before ", None, " between them is a longer text ", None, None),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(split="dual", mrope=False, **options):
        key = (split, mrope, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("bundle")
            made[key] = load(tiny_bundle(folder, split=split, mrope=mrope, **options), threads=1)
        return made[key]

    return get


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize(("split", "mrope"), SHAPES)
def test_the_answer_is_the_models(models, split, mrope, messages):
    model = models(split, mrope)
    images = [picture(i) for i in range(sum(p["type"] == "image" for p in messages[0]["content"]))]
    prompt = model.prompt(messages, images=images)
    answer = model.generate(messages, images=images, max_new_tokens=12, ignore_eos=True)
    assert list(answer.token_ids) == expected(model, prompt, 12, ends=())
    assert list(answer.prompt_token_ids) == prompt.token_ids.tolist()
    assert answer.usage.image_tokens == 4 * len(images)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("split", ["dual", "single"])
@pytest.mark.parametrize("prefill", [1, 3, 7, 64])
def test_chunks_may_end_anywhere(models, split, prefill):
    model = models(split, prefill=prefill)
    images = [picture(5), picture(6)]
    messages = chat("a", None, "bc", None, "d")
    prompt = model.prompt(messages, images=images)
    answer = model.generate(messages, images=images, max_new_tokens=6, ignore_eos=True)
    assert list(answer.token_ids) == expected(model, prompt, 6, ends=())


def test_logits_and_features_are_the_models(models):
    for split, mrope in SHAPES:
        model = models(split, mrope)
        prompt = model.prompt(chat(None, "x", None), images=[picture(1), picture(2)])
        features = [model.image_features(image) for image in prompt.images]
        for rows, image in zip(features, prompt.images, strict=True):
            np.testing.assert_allclose(rows, see(image.tensors["pixel_values"]), atol=1e-6)
        positions, following = prompt_positions(prompt, model.manifest.positions)
        forced = [7, 9]
        there = model.logits(prompt, forced)
        assert there.dtype == np.float32
        steps = [following, following + 1]
        tail = np.array([steps] * 3) if mrope else np.array(steps)
        whole = logits(
            np.append(prompt.token_ids, forced),
            np.append(prompt.feature_index, [-1, -1]),
            np.concatenate(features),
            np.concatenate([positions, tail], axis=-1),
        )
        np.testing.assert_allclose(there, whole[-3:], atol=2e-3)


def test_a_half_precision_cache_is_used_as_declared(models):
    model = models(cache="float16")
    assert model.engine.cache.inputs(0, 1)["past_key.0"].dtype == np.float16
    prompt = model.prompt(prompt="hello")
    exact = models().logits(models().prompt(prompt="hello"))
    found = model.logits(prompt)
    assert 0 < np.abs(found - exact).max() < 0.05


def test_text_alone_never_opens_the_vision_program(tmp_path):
    model = load(tiny_bundle(tmp_path), threads=1)
    opened = []
    opening = model.engine._open
    model.engine._open = lambda program, **k: opened.append(program.file) or opening(program, **k)
    model.generate(prompt="hello", max_new_tokens=3)
    assert opened == []
    before = model.load_seconds
    model.generate(prompt="hello", images=[picture(0)], max_new_tokens=3)
    model.generate(prompt="hello", images=[picture(1)], max_new_tokens=3)
    assert opened == ["programs/vision.onnx"]
    assert model.load_seconds > before


def requests(count: int) -> list[Request]:
    random = np.random.default_rng(3)
    return [
        Request(
            prompt="x" * int(random.integers(1, 30)),
            images=[picture(i)] * int(random.integers(0, 3)),
            max_new_tokens=int(random.integers(1, 14)),
            ignore_eos=bool(i % 2),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize(("split", "mrope"), SHAPES)
def test_rows_come_and_go_and_each_answers_as_if_alone(models, split, mrope, batch):
    model = models(split, mrope, batch=batch)
    asked = requests(11)
    answers = model.generate_batch(asked)
    for request, answer in zip(asked, answers, strict=True):
        prompt = model.prompt(prompt=request.prompt, images=request.images)
        ends = () if request.ignore_eos else (END,)
        assert list(answer.token_ids) == expected(model, prompt, request.max_new_tokens, ends)
    assert not model.loop.busy


def test_streams_are_read_in_turns(models):
    model = models(batch=2)
    asked = requests(5)
    streams = [model.start(request) for request in asked]
    pieces = [[] for _ in streams]
    live = list(range(5))
    while live:
        for index in list(live):
            try:
                pieces[index].append(next(streams[index]))
            except StopIteration:
                live.remove(index)
    for request, stream, text in zip(asked, streams, pieces, strict=True):
        alone = model.start(request).finish()
        assert stream.answer.token_ids == alone.token_ids
        assert "".join(text) == stream.answer.text == alone.text


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stream_that_is_closed_leaves_the_others_right(models, left, after):
    model = models(batch=3)
    asked = requests(4)
    streams = [model.start(request) for request in asked]
    for _ in range(after):
        model.loop.step()
    streams[left].close()
    assert list(streams[left]) == [] or streams[left].job.done
    for index, stream in enumerate(streams):
        if index != left:
            prompt = model.prompt(prompt=asked[index].prompt, images=asked[index].images)
            ends = () if asked[index].ignore_eos else (END,)
            count = asked[index].max_new_tokens
            assert list(stream.finish().token_ids) == expected(model, prompt, count, ends)
    assert not model.loop.busy


@pytest.mark.parametrize("method", ["prefill", "decode"])
def test_ctrl_c_frees_the_slot(models, method, monkeypatch):
    model = models(batch=2)
    before = model.generate(prompt="hello", max_new_tokens=9, ignore_eos=True)
    calls = []
    inner = getattr(model.engine, method)

    def interrupted(*args, **kwargs):
        calls.append(method)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model.engine, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(prompt="something else that is long", max_new_tokens=9, ignore_eos=True)
    assert not model.loop.busy
    again = model.generate(prompt="hello", max_new_tokens=9, ignore_eos=True)
    assert again.token_ids == before.token_ids


def test_one_request_that_fails_does_not_stop_the_others(models, monkeypatch):
    model = models(batch=2)
    encode = model.engine.encode

    def failing(image, *place):
        if image.tensors["pixel_values"][0, 0, 0, 0] == 99:
            raise VlmcError("this picture")
        return encode(image)

    monkeypatch.setattr(model.engine, "encode", failing)
    good, bad = model.start(requests(1)[0]), model.start(Request(prompt="x", images=[picture(0)]))
    bad.job.prompt.images[0].tensors["pixel_values"][0, 0, 0, 0] = 99
    with pytest.raises(VlmcError, match="this picture"):
        bad.finish()
    with pytest.raises(VlmcError, match="this picture"):
        _ = bad.answer
    assert good.finish().token_ids
    assert not model.loop.busy


def test_a_vision_program_of_another_size_is_refused(models):
    model = models()
    prompt = model.prompt(prompt="x", images=[picture(0)])
    image = prompt.images[0]
    image.tensors["pixel_values"] = np.zeros((1, 3, 8, 16), np.float32)
    with pytest.raises(VlmcError, match="for an image of 4 rows"):
        model.image_features(image)


def test_logits_need_an_idle_model(models):
    model = models()
    prompt = model.prompt(prompt="x")
    with model.stream(prompt="hello") as stream:
        next(stream)
        with pytest.raises(VlmcError, match="under way"):
            model.logits(prompt)
    model.logits(prompt)
