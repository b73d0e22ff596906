"""Several products of one x in one node of our kernels, against numpy in float64."""

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.kernels import (
    laned,
    linear_blocks,
    linear_float,
    linear_panels,
    near,
    panelled,
    with_kernels,
)
from tests.backends.test_native_ops import blocks, channels, opened
from vlmc.backends.onnxruntime import native

K, BLOCK = 96, 32
WIDTHS = (200, 24, 130)
PARTS = {
    "Panels": ("w", "scales", "bias"),
    "BlockPanels": ("w", "scales", "zero_points", "bias"),
    "Float": ("w", "bias"),
    "Half": ("w", "bias"),
}
KINDS = [("Panels", 8), ("BlockPanels", 4), ("BlockPanels", 8), ("Float", 32), ("Half", 16)]


def made(kind, bits, widths, absent=(), k=K):
    """Weights of each product; those of ``absent`` lack a bias or zero points."""
    rng = np.random.default_rng([bits, *widths])
    found = []
    for at, n in enumerate(widths):
        if kind == "Panels":
            parts = channels(rng, k, n)
        elif kind == "BlockPanels":
            parts = blocks(rng, k, n, bits, BLOCK)
        else:
            w = rng.standard_normal((n, k)).astype(np.float16 if kind == "Half" else np.float32)
            parts = {"w": w, "bias": rng.standard_normal(n).astype(np.float32)}
        for name in absent if at == 1 else ():
            parts.pop(name, None)
        found.append(parts)
    return found


def stored(kind, name, part):
    """A part as the operators read it."""
    return laned(part) if kind == "BlockPanels" and name != "bias" else part


def counts(kind, weights):
    """Attributes that say how many channels each product has, where its weights do not."""
    channels_of = [len(parts["w"]) for parts in weights] if kind == "BlockPanels" else []
    return dict(zip(("N", "N2", "N3"), channels_of, strict=False))


def session(op, kind, weights, outputs, threads=2, k=K, **attributes):
    inputs, initializers = ["x"], []
    for at, parts in enumerate(weights):
        for name in PARTS[kind]:
            inputs.append(f"{name}{at}" if name in parts else "")
            if name in parts:
                part = stored(kind, name, parts[name])
                initializers.append(numpy_helper.from_array(part, f"{name}{at}"))
    attributes |= counts(kind, weights)
    names = [f"y{at}" for at in range(outputs)]
    node = helper.make_node(op, inputs, names, domain=native.DOMAIN, **attributes)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        op,
        [value("x", TensorProto.FLOAT, ["B", "S", k])],
        [value(name, TensorProto.FLOAT, None) for name in names],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(native.DOMAIN, native.INTERFACE)]
    return opened(helper.make_model(graph, opset_imports=opsets, ir_version=10), threads=threads)


def expected(kind, bits, x, parts):
    if kind == "Panels":
        return linear_panels(x, parts["w"], parts["scales"], parts.get("bias"))
    if kind in ("Float", "Half"):
        return linear_float(x, parts["w"], parts.get("bias"))
    zeros = parts.get("zero_points")
    return linear_blocks(x, parts["w"], parts["scales"], zeros, bits, parts.get("bias"))


def settings(kind, bits):
    if kind in ("Float", "Half"):
        return {}
    return {"K": K} if kind == "Panels" else {"K": K, "bits": bits, "block_size": BLOCK}


@with_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lead", [(1, 1), (1, 5), (3, 3), (2, 40), (0, 1)])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_products_of_one_x(kind, bits, count, lead, threads):
    weights = made(kind, bits, WIDTHS[:count], absent=("bias",))
    op = f"Linear{kind}x{count}"
    run = session(op, kind, weights, count, threads, **settings(kind, bits))
    x = np.random.default_rng(lead).standard_normal((*lead, K)).astype(np.float32)
    for y, parts in zip(run.run(None, {"x": x}), weights, strict=True):
        near(y, *expected(kind, bits, x, parts))


@with_kernels
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("kind", ["Panels", "BlockPanels"])
def test_wide_products(kind, rows):
    """Wider than one thread keeps sums of."""
    widths = (8300, 8300)
    weights = made(kind, 8 if kind == "Panels" else 4, widths)
    x = np.random.default_rng(rows).standard_normal((1, rows, K)).astype(np.float32)
    both = [expected(kind, 4, x, parts) for parts in weights]
    run = session(f"Linear{kind}x2", kind, weights, 2, 3, **settings(kind, 4))
    for y, wanted in zip(run.run(None, {"x": x}), both, strict=True):
        near(y, *wanted)
    run = session(f"Gated{kind}", kind, weights, 1, 3, gate=1, **settings(kind, 4))
    [y] = run.run(None, {"x": x})
    (opened_by, loose), (through, let) = both
    allowed = (1.13 * loose + 1e-6) * np.abs(through) + (np.abs(opened_by) + loose) * let
    near(y, silu(opened_by) * through, allowed + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_quick(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = [(1, silu), (2, gelu_tanh), (3, gelu_quick), (4, gelu)]


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lead", [(1, 1), (1, 5), (3, 3), (2, 40)])
@pytest.mark.parametrize(("gate", "activation"), ACTIVATIONS)
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_an_activated_product(kind, bits, gate, activation, lead, threads):
    weights = made(kind, bits, WIDTHS[:1])
    run = session(f"Activated{kind}", kind, weights, 1, threads, gate=gate, **settings(kind, bits))
    x = np.random.default_rng(lead).standard_normal((*lead, K)).astype(np.float32)
    [y] = run.run(None, {"x": x})
    product, loose = expected(kind, bits, x, weights[0])
    # No slope of an activation is above 1.13.
    near(y, activation(product), 1.13 * loose + 1e-6 * np.abs(product) + 1e-6)


@with_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lead", [(1, 1), (1, 5), (3, 3), (2, 40), (0, 1)])
@pytest.mark.parametrize(("gate", "activation"), ACTIVATIONS[:2])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_a_product_gated_by_another(kind, bits, gate, activation, lead, threads):
    weights = made(kind, bits, (200, 200))
    run = session(f"Gated{kind}", kind, weights, 1, threads, gate=gate, **settings(kind, bits))
    x = np.random.default_rng(lead).standard_normal((*lead, K)).astype(np.float32)
    [y] = run.run(None, {"x": x})
    (first, loose), (second, loose_too) = (expected(kind, bits, x, parts) for parts in weights)
    opened_by = activation(first)
    # No slope of either activation is above 1.13.
    allowed = 1.13 * loose * (np.abs(second) + loose_too) + np.abs(opened_by) * loose_too
    near(y, opened_by * second, allowed + 1e-6 * np.abs(opened_by * second) + 1e-6)


@with_kernels
@pytest.mark.parametrize("rows", [3, 40, 101])
@pytest.mark.parametrize("kind", ["Float", "Half"])
def test_long_products_are_gated_when_they_are_whole(kind, rows):
    """Their sums are made in parts, of which an activation is no sum; the last part is shorter."""
    k = 2100
    weights = made(kind, 0, (200, 200), k=k)
    x = np.random.default_rng(rows).standard_normal((1, rows, k)).astype(np.float32) / 30
    (first, loose), (second, loose_too) = (expected(kind, 0, x, parts) for parts in weights)
    [y] = session(f"Activated{kind}", kind, weights[:1], 1, k=k, gate=3).run(None, {"x": x})
    near(y, gelu_quick(first), 1.13 * loose + 1e-6 * np.abs(first) + 1e-6)
    [y] = session(f"Gated{kind}", kind, weights, 1, k=k, gate=1).run(None, {"x": x})
    allowed = 1.13 * loose * (np.abs(second) + loose_too) + np.abs(silu(first)) * loose_too
    near(y, silu(first) * second, allowed + 1e-6 * np.abs(silu(first) * second) + 1e-6)


@with_kernels
def test_numbers_far_out_are_gated_too():
    """At either end: the number itself or nothing, and no infinity."""
    weights = [
        {"w": panelled(np.eye(K, dtype=np.int8) * 127), "scales": np.full(K, 1 / 127, np.float32)}
    ] * 2
    x = np.zeros((1, 1, K), np.float32)
    x[0, 0, :4] = 300, -300, 2, -2
    for gate, activation in ACTIVATIONS:
        [y] = session("GatedPanels", "Panels", weights, 1, K=K, gate=gate).run(None, {"x": x})
        assert np.isfinite(y).all()
        assert y[0, 0, 0] == pytest.approx(300 * 300, rel=1e-6)
        assert abs(y[0, 0, 1]) < 1e-30
        codes = np.rint(x[0, 0, 2:4].astype(np.float64) * 127 / 300) * 300 / 127
        np.testing.assert_allclose(y[0, 0, 2:4], activation(codes) * codes, rtol=1e-5)


@with_kernels
@pytest.mark.parametrize(
    ("op", "widths", "attributes", "message"),
    [
        ("GatedPanels", (200, 24), {"gate": 1}, "two products of one width"),
        ("GatedPanels", (200, 200), {"gate": 5}, "gate is 1"),
        ("GatedPanels", (200, 200), {}, "gate"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(op, widths, attributes, message):
    x = np.zeros((1, 1, K), np.float32)
    with pytest.raises((state.RuntimeException, state.InvalidArgument, state.Fail), match=message):
        session(op, "Panels", made("Panels", 8, widths), 1, K=K, **attributes).run(None, {"x": x})


@with_kernels
def test_products_of_other_lengths_are_refused():
    weights = made("Panels", 8, (200, 24))
    weights[1]["w"] = weights[1]["w"][:, :-1]
    with pytest.raises(state.InvalidArgument, match=r"w is \[1, 23, 64, 4\], not \[1, 24, 64, 4\]"):
        session("LinearPanelsx2", "Panels", weights, 2, K=K).run(
            None, {"x": np.zeros((1, 1, K), np.float32)}
        )
