"""Taking over what a slot holds: less work, the same answer, never another prompt's."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.runtime import Request, load
from vlmc.runtime.features import cut
from vlmc.runtime.positions import prompt_positions
from vlmc.runtime.prefix import chunk_keys


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8))


@pytest.fixture(scope="module", params=["dual", "single"])
def folder(request, tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), split=request.param, prefill=4)


class Counted:
    """A model whose prefilled chunks and encoded images are counted."""

    def __init__(self, folder, **options) -> None:
        self.model = load(folder, threads=1, **options)
        self.chunks: list[int] = []
        inner = self.model.engine.prefill

        def prefill(slot, prompt, positions, chunk, *rest):
            self.chunks.append(chunk.start)
            return inner(slot, prompt, positions, chunk, *rest)

        self.model.engine.prefill = prefill

    def ask(self, text, *seeds, count=6):
        self.chunks.clear()
        images = [picture(seed) for seed in seeds]
        answer = self.model.generate(
            prompt=text, images=images, max_new_tokens=count, ignore_eos=True
        )
        return answer.token_ids


def test_the_same_question_again_runs_its_last_chunk_only(folder):
    counted = Counted(folder)
    first = counted.ask("hello there")
    assert len(counted.chunks) > 4
    assert counted.ask("hello there") == first
    assert len(counted.chunks) == 1


def test_answers_are_the_same_with_and_without(folder):
    asked = [
        ("hello there", 1), ("hello there", 1), ("hello there!", 1), ("hello there", 2),
        ("hello there", 1, 2), ("hello there", 2, 1), ("hello there", 1, 2), ("hello",),
        ("hello and more words",), ("hello",), ("hello there", 1, 1), ("hello there", 1),
    ]  # fmt: skip
    plain, counted = Counted(folder, reuse=False), Counted(folder)
    saved = 0
    for question in asked:
        expected = plain.ask(*question)
        assert counted.ask(*question) == expected
        saved += len(plain.chunks) - len(counted.chunks)
    assert saved > 20


def test_another_picture_of_the_same_size_is_another_prompt(folder):
    counted = Counted(folder)
    counted.ask("what?", 1)
    counted.ask("what?", 2)
    # Up to the picture the two agree: two chunks of four tokens at most.
    assert counted.chunks[0] <= 8
    counted.ask("what?", 2)
    assert len(counted.chunks) <= 3


def test_a_chats_second_turn_starts_where_the_first_question_ended(folder):
    counted = Counted(folder)
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    image = picture(3)
    answer = counted.model.generate(turns, images=[image], max_new_tokens=5, ignore_eos=True)
    asked = answer.usage.prompt_tokens
    turns += [
        {"role": "assistant", "content": [{"type": "text", "text": "it"}]},
        {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    ]
    counted.chunks.clear()
    again = counted.model.generate(turns, images=[image], max_new_tokens=5, ignore_eos=True)
    assert asked - 8 <= counted.chunks[0] <= asked
    alone = load(folder, threads=1, reuse=False)
    expected = alone.generate(turns, images=[image], max_new_tokens=5, ignore_eos=True)
    assert again.token_ids == expected.token_ids
    assert again.usage == expected.usage


def test_rows_that_share_a_beginning_never_mix(folder):
    requests = [
        Request(prompt=f"hello there {'x' * (i % 3)}{i // 4}", images=[picture(i % 2)] * (i % 3),
                max_new_tokens=3 + i % 5, ignore_eos=True)
        for i in range(14)
    ]  # fmt: skip
    plain = load(folder, threads=1, reuse=False)
    expected = [plain.start(request).finish().token_ids for request in requests]
    model = load(folder, threads=1)
    for _ in range(2):
        assert [a.token_ids for a in model.generate_batch(requests)] == expected


@pytest.mark.parametrize("prefill", [1, 2, 3])
@pytest.mark.parametrize("split", ["dual", "single"])
def test_an_image_that_goes_on_past_what_is_held(tmp_path, split, prefill):
    """The first chunk to run begins inside a picture whose first chunk is skipped."""
    folder = tiny_bundle(tmp_path, split=split, prefill=prefill)
    plain, counted = Counted(folder, reuse=False), Counted(folder)
    for text in ("a", "b", "ccccc", "cccdd"):
        for seeds in ((1, 2), (1,), (1, 3)):
            assert counted.ask(text, *seeds) == plain.ask(text, *seeds)


def test_a_slot_that_is_moved_takes_its_memory_along(folder):
    model = load(folder, threads=1)
    cache = model.engine.cache
    for stop, key in ((4, b"a"), (8, b"b"), (12, b"c")):
        cache.remember(2, stop, key)
    cache.remember(0, 4, b"x")
    for buffer in cache.inputs(2, 3).values():
        buffer[:] = 7
    cache.move(2, 0, 8)
    assert cache.matching(0, [b"a", b"b", b"c"]) == 2
    assert cache.matching(2, [b"a", b"b", b"c", b"d"]) == 3
    assert cache.matching(2, [b"a", b"x", b"c"]) == 1
    assert cache.matching(1, [b"a"]) == 0
    for buffer in cache.inputs(0, 1).values():
        assert (buffer[0, :, :8] == 7).all()
        assert not buffer[0, :, 8:].any()
    cache.forget(2, 7)
    assert cache.matching(2, [b"a", b"b"]) == 1


def test_looking_at_logits_and_features_forgets_what_they_overwrite(folder):
    counted = Counted(folder)
    first = counted.ask("hello there", 1)
    model = counted.model
    prompt = model.prompt(prompt="something else altogether", images=[picture(5)])
    model.image_features(prompt.images[0])
    assert counted.ask("hello there", 1) == first
    model.logits(prompt, [1, 2, 3])
    assert counted.ask("hello there", 1) == first


def test_a_question_given_up_leaves_only_what_was_written(folder):
    counted = Counted(folder)
    plain = Counted(folder, reuse=False).ask("hello there and more", 1)
    for steps in range(6):
        stream = counted.model.stream(prompt="hello there and more", images=[picture(1)])
        for _ in range(steps):
            counted.model.loop.step()
        stream.close()
    assert counted.ask("hello there and more", 1) == plain


def test_a_key_covers_everything_a_chunk_reads(folder):
    model = load(folder, threads=1)
    prompt = model.prompt(prompt="a text of some length", images=[picture(1), picture(2)])
    positions, _ = prompt_positions(prompt, model.manifest.positions)
    chunks = cut(prompt, 4, at_images=False)
    keys = chunk_keys(prompt, positions, chunks)
    assert len(set(keys)) == len(keys)
    assert chunk_keys(prompt, positions, chunks) == keys
    seen = int(np.flatnonzero(prompt.feature_index >= 0)[0]) // 4
    last = len(prompt.token_ids) - 1

    def agree(prompt=prompt, positions=positions, chunks=chunks) -> int:
        other = chunk_keys(prompt, positions, chunks)
        return sum(a == b for a, b in zip(keys, other, strict=True))

    def bumped(array, at):
        copy = array.copy()
        copy[at] += 1
        return copy

    tensors = {"pixel_values": bumped(prompt.images[0].tensors["pixel_values"], (0, 0, 0, 0))}
    images = (replace(prompt.images[0], tensors=tensors), prompt.images[1])
    assert agree(replace(prompt, images=images)) == seen
    assert agree(replace(prompt, token_ids=bumped(prompt.token_ids, last))) == len(keys) - 1
    assert agree(replace(prompt, token_ids=bumped(prompt.token_ids, 0))) == 0
    assert agree(positions=bumped(positions, last)) == len(keys) - 1
    swapped = replace(prompt, images=prompt.images[::-1])
    assert agree(swapped) == seen
    renamed = replace(prompt.images[0], tensors={"x": prompt.images[0].tensors["pixel_values"]})
    assert agree(replace(prompt, images=(renamed, prompt.images[1]))) == seen
