"""Products of a sum's norm in one node of our kernels, against numpy in float64."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.kernels import near, with_kernels
from tests.backends.test_native_groups import (
    KINDS,
    PARTS,
    K,
    counts,
    expected,
    made,
    settings,
    silu,
    stored,
)
from tests.backends.test_native_ops import opened
from vlmc.backends.onnxruntime import native

EPSILON = 1e-3


def session(op, kind, weights, products, threads, beta=False, **attributes):
    """One node of x and a skip [B, S, K], the norm's weights, and products."""
    parts = {
        f"{name}{at}": stored(kind, name, one[name])
        for at, one in enumerate(weights)
        for name in PARTS[kind]
        if name in one
    }
    wanted = [f"{name}{at}" for at in range(len(weights)) for name in PARTS[kind]]
    names = [f"y{at}" for at in range(products)] + ["total"]
    names += ["x"] if kind != "Panels" else []
    inputs = [
        "x0",
        "skip",
        "gamma",
        "beta" if beta else "",
        *(name if name in parts else "" for name in wanted),
    ]
    attributes = {"epsilon": EPSILON, "centered": 0, **counts(kind, weights)} | attributes
    node = helper.make_node(op, inputs, names, domain=native.DOMAIN, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        op,
        [
            *(value(name, TensorProto.FLOAT, ["B", "S", K]) for name in ("x0", "skip")),
            *(value(name, TensorProto.FLOAT, ["K"]) for name in ("gamma", "beta")[: 1 + beta]),
        ],
        [value(name, TensorProto.FLOAT, None) for name in names],
        [numpy_helper.from_array(array, name) for name, array in parts.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(native.DOMAIN, native.INTERFACE)]
    return opened(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=threads)


def terms(lead, beta=False):
    rng = np.random.default_rng(lead)
    x, skip = (rng.standard_normal((*lead, K)).astype(np.float32) for _ in range(2))
    made = {"x0": x + 3, "skip": skip, "gamma": rng.uniform(0.5, 2, K).astype(np.float32)}
    return made | ({"beta": rng.standard_normal(K).astype(np.float32)} if beta else {})


def normed(feeds, total, made, centered=False):
    """What is multiplied, once the sum is what it should be, and so is this where it is made."""
    wanted = feeds["x0"].astype(np.float64) + feeds["skip"]
    near(total, wanted, 1e-6)
    wanted -= centered * wanted.mean(axis=-1, keepdims=True)
    mean = (wanted**2).mean(axis=-1, keepdims=True)
    x = wanted / np.sqrt(mean + EPSILON) * feeds["gamma"] + feeds.get("beta", 0)
    for one in made:
        near(one, x, 1e-5)
    return made[0] if made else x


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lead", [(1, 1), (3, 3), (2, 40), (0, 1)])
@pytest.mark.parametrize(("op", "count"), [("Linear{}", 1), ("Linear{}x2", 2), ("Linear{}x3", 3)])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_products_of_a_norm(kind, bits, op, count, lead, threads):
    weights = made(kind, bits, (200, 24, 130)[:count], absent=("bias",))
    op = "Normed" + op.format(kind)
    run = session(op, kind, weights, count, threads, **settings(kind, bits))
    feeds = terms(lead)
    outputs = run.run(None, feeds)
    made_of, (total, *x) = outputs[:count], outputs[count:]
    x = normed(feeds, total, x)
    for y, parts in zip(made_of, weights, strict=True):
        near(y, *expected(kind, bits, x, parts))


@with_kernels
@pytest.mark.parametrize("beta", [False, True])
@pytest.mark.parametrize("lead", [(1, 1), (2, 40)])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_products_of_a_norm_about_the_mean(kind, bits, lead, beta):
    weights = made(kind, bits, (200, 24))
    op = f"NormedLinear{kind}x2"
    run = session(op, kind, weights, 2, 2, beta, centered=1, **settings(kind, bits))
    feeds = terms(lead, beta)
    outputs = run.run(None, feeds)
    x = normed(feeds, outputs[2], outputs[3:], centered=True)
    for y, parts in zip(outputs[:2], weights, strict=True):
        near(y, *expected(kind, bits, x, parts))


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lead", [(1, 1), (2, 40)])
@pytest.mark.parametrize(("op", "count"), [("Activated{}", 1), ("Gated{}", 2)])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_an_activation_of_a_norms_products(kind, bits, op, count, lead, threads):
    weights = made(kind, bits, (200, 200)[:count])
    op = "Normed" + op.format(kind)
    run = session(op, kind, weights, 1, threads, gate=1, **settings(kind, bits))
    feeds = terms(lead)
    y, total, *x = run.run(None, feeds)
    x = normed(feeds, total, x)
    (first, loose), *others = (expected(kind, bits, x, parts) for parts in weights)
    let, loose_too = others[0] if others else (np.ones_like(first), 0.0)
    allowed = 1.13 * loose * (np.abs(let) + loose_too) + np.abs(silu(first)) * loose_too
    near(y, silu(first) * let, allowed + 1e-6 * np.abs(silu(first) * let) + 1e-6)


@with_kernels
@pytest.mark.parametrize("name", ["skip", "gamma", "beta"])
def test_terms_that_do_not_fit_are_refused(name):
    run = session("NormedLinearPanels", "Panels", made("Panels", 8, (24,)), 1, 1, True, K=K)
    feeds = terms((1, 2), beta=True)
    feeds[name] = feeds[name][:, :1] if name == "skip" else feeds[name][..., :1]
    with pytest.raises((state.InvalidArgument, state.Fail), match=f"{name} is"):
        run.run(None, feeds)
