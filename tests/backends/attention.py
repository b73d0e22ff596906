"""Attention of our kernels under test: sessions of one node, their feeds, what they should give."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.backends.kernels import KERNELS, near
from tests.backends.test_native_ops import opened
from vlmc.backends.onnxruntime import native

F32, F16, I32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32
ALLOWED = 4e-6  # of sums of a few hundred numbers near 1, in float32
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


def turned(packed, heads, cos, sin):
    """transformers' ``apply_rotary_pos_emb`` of [B, S, H * D], in float64."""
    x = packed.reshape(*packed.shape[:2], heads, -1).astype(np.float64)
    cos, sin, half = cos[:, :, None], sin[:, :, None], cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    made = [first * cos - second * sin, second * cos + first * sin, rest]
    return np.concatenate(made, axis=-1).reshape(packed.shape)


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
