"""Requests that come, go, are given up or fail in any order: the rest answer as if alone."""

import random

import numpy as np
import pytest
from PIL import Image

from tests.tiny_bundle import tiny_bundle
from vlmc.backends import SessionError
from vlmc.runtime import Request, load


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8))


REQUESTS = [
    Request(
        prompt="hello"[: 1 + i % 5] + "x" * (i % 7),
        images=[picture(i % 3)] * (i % 4 % 3),
        max_new_tokens=1 + i % 9,
        ignore_eos=True,
    )
    for i in range(12)
]


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_events(tmp_path, seed):
    chance = random.Random(seed)
    split = chance.choice(["dual", "single"])
    folder = tiny_bundle(tmp_path, split=split, prefill=chance.choice([2, 5, 8]), batch=3)
    alone = load(folder, threads=1, reuse=False)
    expected = [alone.start(request).finish().token_ids for request in REQUESTS]
    model = load(folder, threads=1)
    broken: list[str] = []
    for name in ("prefill", "decode"):
        inner = getattr(model.engine, name)

        def outer(*args, name=name, inner=inner):
            if name in broken:
                broken.remove(name)
                raise SessionError("made to fail")
            return inner(*args)

        setattr(model.engine, name, outer)
    open_streams: list[tuple[int, object]] = []
    finished = 0
    for _ in range(250):
        event = chance.random()
        if event < 0.12:
            index = chance.randrange(len(REQUESTS))
            open_streams.append((index, model.start(REQUESTS[index])))
        elif event < 0.15 and open_streams:
            open_streams.pop(chance.randrange(len(open_streams)))[1].close()
        elif event < 0.16 and not broken:
            broken.append(chance.choice(["prefill", "decode"]))
        else:
            model.loop.step()
        for index, stream in list(open_streams):
            if stream.job.done:
                open_streams.remove((index, stream))
                if stream.job.error is None:
                    assert stream.finish().token_ids == expected[index]
                    finished += 1
                else:
                    with pytest.raises(SessionError, match="made to fail"):
                        stream.finish()
    broken.clear()
    for index, stream in open_streams:
        assert stream.finish().token_ids == expected[index]
    assert not model.loop.busy
    assert finished > 3
