"""Attention of our kernels through onnxruntime, against numpy in float64."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.kernels import KERNELS, near, with_kernels
from tests.backends.test_native_ops import opened
from vlmc.backends.onnxruntime import native

F32, F16, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
ALLOWED = 4e-6  # of sums of a few hundred numbers near 1, in float32
HEADS = [(4, 4, 8), (4, 2, 24), (7, 1, 64), (6, 3, 80), (2, 1, 128), (3, 1, 256)]
INFO = Path("/proc/cpuinfo")
# What the CPU has beside AVX-512, where that is used: the kernels for AVX2 use nothing else.
USED = KERNELS is not None and native.instructions() != "AVX2"
CPU = INFO.read_text().split() if USED and INFO.is_file() else []
CACHED = ("query", "key", "value", "past_key", "past_value", "lengths")
TABLES = ("cos", "sin")
TOWER = ("query", "key", "value", "bias")


def session(op, shapes, *, threads=2, **attributes):
    """One node; ``shapes`` of its inputs by name, those it is given."""
    cached = not op.startswith("TowerAttention")
    of_cached = (*CACHED, *TABLES) if op.startswith("Rotary") else CACHED
    element = F16 if op.endswith("AttentionHalf") else F32
    kinds = {"past_key": element, "past_value": element, "lengths": I32}
    value = helper.make_tensor_value_info
    outputs = ["out", "present_key", "present_value"] if cached else ["out"]
    node = helper.make_node(
        op,
        [name if name in shapes else "" for name in (of_cached if cached else TOWER)],
        outputs,
        domain=native.DOMAIN,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        op,
        [value(name, kinds.get(name, F32), shape) for name, shape in shapes.items()],
        [value(name, element if "present" in name else F32, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(native.DOMAIN, native.INTERFACE)]
    return opened(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=threads)


def cached_session(
    heads,
    kv_heads,
    size,
    *,
    half=False,
    window=0,
    softcap=0.0,
    threads=2,
    rotary=False,
    rounded=False,
):
    cache = ["B", kv_heads, "C", size]
    shapes = {
        "query": ["B", "S", heads * size],
        "key": ["B", "S", kv_heads * size],
        "value": ["B", "S", kv_heads * size],
        "past_key": cache,
        "past_value": cache,
        "lengths": ["B"],
    }
    if rotary:
        shapes |= {name: ["B", "S", "R"] for name in TABLES}
    return session(
        ("Rotary" if rotary else "Cached") + "Attention" + "Half" * half,
        shapes,
        threads=threads,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=size**-0.5,
        softcap=float(softcap),
        window=window,
        rounded=int(rounded),
    )


def tower_session(heads, kv_heads, size, *, bias=True, threads=2, op="TowerAttention"):
    shapes = {
        "query": ["B", "S", heads * size],
        "key": ["B", "T", kv_heads * size],
        "value": ["B", "T", kv_heads * size],
    }
    if bias:
        shapes["bias"] = ["X", "Y", "Z", "T"]
    heads_of = {"num_heads": heads, "kv_num_heads": kv_heads}
    return session(op, shapes, threads=threads, scale=size**-0.5, **heads_of)


def asked(lengths, step, capacity, heads, kv_heads, size, half=False):
    """Feeds; everything in the caches is noise, what lies behind a row's end too."""
    rng = np.random.default_rng([len(lengths), step, capacity, heads, size])
    cache = (len(lengths), kv_heads, capacity, size)
    feeds = {
        "query": rng.standard_normal((len(lengths), step, heads * size)),
        "key": rng.standard_normal((len(lengths), step, kv_heads * size)),
        "value": rng.standard_normal((len(lengths), step, kv_heads * size)),
    }
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    for name in ("past_key", "past_value"):
        feeds[name] = rng.standard_normal(cache).astype(np.float16 if half else np.float32)
    return feeds | {"lengths": np.array(lengths, np.int32)}


def attention(query, keys, values, scale, *, softcap=0.0, seen=True, bias=0.0):
    """float64 [S, H, D] of query [S, H, D], keys and values [KV, T, D], seen and bias [H, S, T]."""
    group = query.shape[1] // len(keys)
    keys, values = (np.repeat(x.astype(np.float64), group, axis=0) for x in (keys, values))
    scores = np.einsum("shd,htd->hst", query.astype(np.float64), keys) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen, scores + bias, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-1e300))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hst,htd->shd", weights, values)


def expected_of(feeds, heads, scale, *, window=0, softcap=0.0):
    """The answer and both caches after it."""
    batch, step, width = feeds["query"].shape
    _, kv_heads, capacity, size = feeds["past_key"].shape
    caches = {name: feeds[f"past_{name}"].copy() for name in ("key", "value")}
    out = np.zeros((batch, step, width))
    for row, length in enumerate(feeds["lengths"].tolist()):
        past = length - step
        if past < 0 or length > capacity:
            continue
        for name, cache in caches.items():
            new = feeds[name][row].reshape(step, kv_heads, size).transpose(1, 0, 2)
            cache[row, :, past:length] = new.astype(cache.dtype)
        i, j = np.arange(past, length)[:, None], np.arange(length)
        query = feeds["query"][row].reshape(step, heads, size)
        keys, values = (caches[name][row, :, :length] for name in ("key", "value"))
        seen = (j <= i) & (not window or j > i - window)
        answer = attention(query, keys, values, scale, softcap=softcap, seen=seen)
        out[row] = answer.reshape(step, width)
    return out, caches["key"], caches["value"]


def run(opened_session, feeds, *, in_place):
    """The answer and the caches; ``in_place`` binds one memory to a cache's input and output."""
    binding = opened_session.io_binding()
    held = {name: array.copy() for name, array in feeds.items()}
    out = np.full(feeds["query"].shape, np.nan, np.float32)
    written = {"out": out}
    for name in ("key", "value"):
        past = held[f"past_{name}"]
        written[f"present_{name}"] = past if in_place else np.zeros_like(past)
    for name, array in held.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in written.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    opened_session.run_with_iobinding(binding)
    if not in_place:
        assert all(np.array_equal(held[name], feeds[name]) for name in feeds)
    return written.values()


def check(opened_session, feeds, heads, **attributes):
    size = feeds["past_key"].shape[-1]
    expected, *caches = expected_of(feeds, heads, size**-0.5, **attributes)
    for in_place in (True, False):
        out, *present = run(opened_session, feeds, in_place=in_place)
        near(out, expected, ALLOWED)
        for cache, wanted in zip(present, caches, strict=True):
            assert np.array_equal(cache, wanted)


@with_kernels
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (9, 0.0), (0, 5.0), (70, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS)
def test_a_step_over_a_cache(heads, kv_heads, size, window, softcap, half):
    given = {"window": window, "softcap": softcap}
    session = cached_session(heads, kv_heads, size, half=half, **given)
    for step in (1, 2, 7, 65):
        for past in (0, 5, 130):
            feeds = asked([past + step], step, 200, heads, kv_heads, size, half)
            check(session, feeds, heads, **given)
        rows = [step, step + 130, step + 9]
        check(session, asked(rows, step, 197, heads, kv_heads, size, half), heads, **given)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"),
    [(7, 1, 64), (6, 2, 40), (3, 3, 64), (4, 2, 128), (5, 1, 24), (8, 2, 256)],
)
def test_one_token_after_many(heads, kv_heads, size, half, window, threads):
    """A head's keys are shared out among threads, those of rows that have next to none too."""
    session = cached_session(heads, kv_heads, size, half=half, window=window, threads=threads)
    for lengths in ([700], [1, 700, 2, 130, 701]):
        feeds = asked(lengths, 1, 701, heads, kv_heads, size, half)
        check(session, feeds, heads, window=window)


def turned(packed, heads, cos, sin):
    """transformers' ``apply_rotary_pos_emb`` of [B, S, H * D], in float64."""
    x = packed.reshape(*packed.shape[:2], heads, -1).astype(np.float64)
    cos, sin, half = cos[:, :, None], sin[:, :, None], cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    made = [first * cos - second * sin, second * cos + first * sin, rest]
    return np.concatenate(made, axis=-1).reshape(packed.shape)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "angles"), [(6, 2, 64, 32), (4, 4, 40, 20), (7, 1, 24, 5)]
)
def test_heads_are_turned_first(heads, kv_heads, size, angles, half, threads):
    session = cached_session(heads, kv_heads, size, half=half, threads=threads, rotary=True)
    for lengths, step in (([150], 1), ([1, 300, 0], 1), ([40, 90], 40)):
        feeds = asked(lengths, step, 301, heads, kv_heads, size, half)
        angle = np.random.default_rng(step).uniform(0, 9, (len(lengths), step, angles))
        tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
        plain = feeds | {
            name: turned(feeds[name], count, **tables)
            for name, count in (("query", heads), ("key", kv_heads))
        }
        expected, *caches = expected_of(plain, heads, size**-0.5)
        for in_place in (True, False):
            out, *present = run(session, feeds | tables, in_place=in_place)
            near(out, expected, 1e-3 if half else ALLOWED)
            for cache, wanted in zip(present, caches, strict=True):
                # A number between two halves goes to either.
                near(cache.astype(np.float32), wanted, 5e-3 if half else 2e-6)


@with_kernels
@pytest.mark.parametrize(("angles", "rows"), [(13, 3), (5, 2)])
def test_tables_that_do_not_fit_are_refused(angles, rows):
    session = cached_session(4, 2, 24, rotary=True)
    tables = dict.fromkeys(TABLES, np.ones((1, rows, angles), np.float32))
    with pytest.raises((state.RuntimeException, state.InvalidArgument, state.Fail), match="cos is"):
        session.run(None, asked([3], 3, 8, 4, 2, 24) | tables)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [0, 100])
def test_a_long_step(window, threads):
    session = cached_session(6, 2, 64, window=window, threads=threads)
    check(session, asked([300, 311], 300, 320, 6, 2, 64), 6, window=window)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 40])
@pytest.mark.parametrize("half", [False, True])
def test_a_row_without_a_question_is_left_alone(half, step, threads):
    """Its length is less than the step, or more than its cache holds: zeros, the cache as it was.

    Of a cache that is just full, every place is used.
    """
    session = cached_session(4, 2, 24, half=half, threads=threads)
    for odd in (0, step - 1, -5, -(2**31), 65, 2**31 - 1):
        check(session, asked([64, odd, step], step, 64, 4, 2, 24, half), 4)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_asked(threads):
    session = cached_session(4, 2, 24, threads=threads)
    for lengths, step, capacity in (([], 1, 8), ([], 0, 8), ([3, 0], 0, 8), ([1, 1], 1, 0)):
        check(session, asked(lengths, step, capacity, 4, 2, 24), 4)
    session = tower_session(4, 2, 24, bias=False, threads=threads)
    for batch, step in ((0, 3), (2, 0)):
        feeds = {name: np.zeros((batch, step, n), np.float32) for name, n in KEYS_OF_2.items()}
        assert session.run(None, feeds)[0].shape == (batch, step, 96)


KEYS_OF_2 = {"query": 96, "key": 48, "value": 48}


def seen_by_tower(batch, step, heads, kv_heads, size, total=None):
    feeds = asked([step] * batch, step, 1, heads, kv_heads, size)
    keys = asked([step] * batch, total or step, 1, heads, kv_heads, size)
    return {"query": feeds["query"], "key": keys["key"], "value": keys["value"]}


def tower_expected(feeds, heads, kv_heads, size, bias=None):
    batch, step, width = feeds["query"].shape
    out = np.empty((batch, step, width))
    for row in range(batch):
        query = feeds["query"][row].reshape(step, heads, size)
        keys, values = (
            feeds[name][row].reshape(-1, kv_heads, size).transpose(1, 0, 2)
            for name in ("key", "value")
        )
        added = 0.0 if bias is None else np.broadcast_to(bias, (batch, *bias.shape[1:]))[row]
        answer = attention(query, keys, values, size**-0.5, bias=np.float64(added))
        out[row] = answer.reshape(step, width)
    return out


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "step"), [(1, 1), (2, 33), (5, 16), (1, 257), (3, 64)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 64), (2, 2, 72), (6, 2, 24)])
def test_a_tower(heads, kv_heads, size, batch, step, threads):
    feeds = seen_by_tower(batch, step, heads, kv_heads, size)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    [y] = tower_session(**given, bias=False, threads=threads).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)
    session = tower_session(**given, threads=threads)
    for shape in {(1, 1), (batch, 1), (1, heads), (batch, heads)}:
        rng = np.random.default_rng(shape)
        bias = rng.standard_normal((*shape, step, step)).astype(np.float32)
        hidden = rng.random(bias.shape) < 0.4
        hidden[..., 0] = False
        for never in (0.0, -np.inf, np.finfo(np.float32).min):
            bias[hidden] = never
            [y] = session.run(None, feeds | {"bias": bias})
            near(y, tower_expected(feeds, **given, bias=bias), ALLOWED)


@with_kernels
@pytest.mark.parametrize("total", [511, 2_900, 6_000])
def test_a_tower_of_many_keys(total):
    """Rows that take turns with what is near of keys, and those whose scores have no room near."""
    given = {"heads": 2, "kv_heads": 1, "size": 40}
    feeds = seen_by_tower(1, 50, **given, total=total)
    [y] = tower_session(**given, bias=False).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)


@with_kernels
def test_a_tower_that_sees_nothing_answers_zeros():
    given = {"heads": 2, "kv_heads": 1, "size": 40}
    feeds = seen_by_tower(1, 50, **given)
    feeds |= {name: feeds[name][:, :0] for name in ("key", "value")}
    [y] = tower_session(**given, bias=False).run(None, feeds)
    assert y.shape == (1, 50, 80)
    assert not y.any()


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("step", "total"), [(1, 1), (5, 70), (70, 5), (33, 257), (64, 64)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(2, 2, 64), (6, 2, 24), (2, 2, 72), (1, 1, 130), (3, 3, 7)]
)
def test_a_tower_of_rounded_factors(heads, kv_heads, size, step, total, threads):
    """Factors of bfloat16, 2^-9 of themselves off at most; an odd head stays float32."""
    feeds = seen_by_tower(2, step, heads, kv_heads, size, total)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    bias = np.random.default_rng(step).standard_normal((2, 1, step, total)).astype(np.float32)
    bias[:, :, :, total // 2 + 1 :] = -np.inf
    rounding = 2.0**-8
    # A score of q and k is off by that share of |q| |k|, its exponential by as much in relation;
    # so are shares and values themselves.
    off = rounding * np.abs(feeds["query"]).max() * np.abs(feeds["key"]).max() * size**0.5
    allowed = (2 * off + 2 * rounding) * np.abs(feeds["value"]).max()
    for added in (None, bias):
        wanted = tower_expected(feeds, **given, bias=added)
        plain = {"bias": added} if added is not None else {}
        session = tower_session(
            **given, bias=added is not None, threads=threads, op="TowerAttentionBf16"
        )
        [y] = session.run(None, feeds | plain)
        near(y, wanted, ALLOWED if size % 2 else allowed)
        # Errors have no direction: the usual one is far smaller.
        assert np.abs(y - wanted).mean() < 6e-3
        if not size % 2 and "avx512_bf16" in CPU:
            assert np.abs(y - wanted).max() > 1e-4


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("step", "total"), [(1, 4), (5, 70), (70, 5), (32, 257)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(2, 2, 64), (6, 2, 24)])
def test_queries_of_one_sequence_see_another(heads, kv_heads, size, step, total, threads):
    feeds = seen_by_tower(3, step, heads, kv_heads, size, total)
    given = {"heads": heads, "kv_heads": kv_heads, "size": size}
    [y] = tower_session(**given, bias=False, threads=threads).run(None, feeds)
    near(y, tower_expected(feeds, **given), ALLOWED)
    session = tower_session(**given, threads=threads)
    for shape in ((1, 1, 1), (3, 1, 1), (3, heads, step), (1, heads, step)):
        bias = np.random.default_rng(shape).standard_normal((*shape, total)).astype(np.float32)
        bias[..., : total // 2] = -np.inf
        [y] = session.run(None, feeds | {"bias": bias})
        near(y, tower_expected(feeds, **given, bias=bias), ALLOWED)


@with_kernels
def test_a_query_that_sees_nothing():
    """All at minus infinity: zeros. All at one number far below every score: the mean."""
    heads, size, step = 2, 24, 20
    feeds = seen_by_tower(1, step, heads, heads, size)
    bias = np.zeros((1, 1, step, step), np.float32)
    bias[0, 0, 3], bias[0, 0, 7] = -np.inf, np.finfo(np.float32).min
    [y] = tower_session(heads, heads, size).run(None, feeds | {"bias": bias})
    bias[0, 0, [3, 7]] = 0
    expected = tower_expected(feeds, heads, heads, size, bias)
    expected[0, 3] = 0
    expected[0, 7] = feeds["value"][0].mean(axis=0)
    near(y, expected, ALLOWED)


@with_kernels
@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_none_is_not_hidden(name, bad):
    """Whoever sees it gets none. Other rows, and of its own row who comes before, are as ever.

    (Of one step, earlier queries may share the fate of a later value: their weight of it is zero.)
    """
    session = cached_session(4, 2, 24)
    feeds = asked([12, 9], 5, 16, 4, 2, 24)
    good, *_ = run(session, feeds, in_place=True)
    feeds[name][0, 2] = bad
    y, *_ = run(session, feeds, in_place=True)
    sees = slice(2, 3 if name == "query" else 5)
    assert not np.isfinite(y[0, sees]).any()
    spoilt = slice(0 if name == "value" else 2, sees.stop)
    y[0, spoilt] = good[0, spoilt]
    assert np.array_equal(y, good)


@with_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 3, 95)}, r"query is \[2, 3, 95\], for 4 heads"),
        ({"query": (2, 3, 0)}, r"query is \[2, 3, 0\], for 4 heads"),
        ({"query": (6, 96)}, r"query is \[6, 96\], not of rank 3"),
        ({"key": (2, 3, 96)}, r"key is \[2, 3, 96\], not \[2, 3, 48\]"),
        ({"value": (2, 2, 48)}, r"value is \[2, 2, 48\], not \[2, 3, 48\]"),
        ({"past_key": (2, 2, 8, 32)}, r"past_key is \[2, 2, 8, 32\], not \[2, 2, 8, 24\]"),
        ({"past_key": (2, 48, 8)}, r"past_key is \[2, 48, 8\], not of rank 4"),
        ({"past_value": (2, 2, 9, 24)}, r"past_value is \[2, 2, 9, 24\], not \[2, 2, 8, 24\]"),
        ({"past_value": (1, 2, 8, 24)}, r"past_value is \[1, 2, 8, 24\], not"),
        ({"lengths": (1,)}, r"lengths is \[1\], not \[2\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    feeds = asked([3, 5], 3, 8, 4, 2, 24)
    feeds |= {name: np.ones(shape, feeds[name].dtype) for name, shape in change.items()}
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2, "softcap": 0.0}
    heads |= {"window": 0, "rounded": 0}
    loose = session("CachedAttention", dict.fromkeys(CACHED), **heads)
    with pytest.raises(state.InvalidArgument, match=message):
        loose.run(None, feeds)


@with_kernels
@pytest.mark.parametrize("shape", [(2, 1, 5, 6), (2, 1, 4, 5), (3, 1, 5, 5), (1, 3, 5, 5), (5, 5)])
def test_a_bias_that_does_not_fit_is_refused(shape):
    feeds = seen_by_tower(2, 5, 4, 2, 24) | {"bias": np.ones(shape, np.float32)}
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2}
    loose = session("TowerAttention", dict.fromkeys(TOWER), **heads)
    with pytest.raises(state.InvalidArgument, match="bias is"):
        loose.run(None, feeds)


@with_kernels
@pytest.mark.parametrize(
    "change", [{"kv_num_heads": 3}, {"num_heads": 0}, {"kv_num_heads": -2}, {"window": -1}]
)
def test_attributes_that_make_no_sense_are_refused(change):
    heads = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.2, "softcap": 0.0}
    heads |= {"window": 0, "rounded": 0}
    with pytest.raises(state.RuntimeException, match=r"num_heads is|window is"):
        session("CachedAttention", dict.fromkeys(CACHED), **heads | change)


@with_kernels
@pytest.mark.parametrize(
    ("shape", "inferred"),
    [
        (["B", "S", 96], ["B", "S", 96]),
        ([2, "S", 96], [2, "S", 96]),
        ([None, "S", 96], []),
        ([], []),
    ],
)
def test_the_shape_of_the_answer_is_inferred_where_it_is_known(shape, inferred):
    """What has neither size nor name is left open, and runs."""
    shapes = dict.fromkeys(TOWER[:3], shape or None)
    made = session("TowerAttention", shapes, num_heads=4, kv_num_heads=4, scale=0.2)
    [y] = made.get_outputs()
    assert y.shape == inferred
    feeds = seen_by_tower(2, 5, 4, 4, 24)
    assert made.run(None, feeds)[0].shape == (2, 5, 96)
