"""Operators as steps of a Chain, against the same ones as nodes."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.backends.kernels import steps, with_kernels
from tests.backends.test_native_groups import PARTS, counts, made, stored
from tests.backends.test_native_ops import opened
from vlmc.backends.onnxruntime import native
from vlmc.backends.onnxruntime.lower_chains import merge_chains
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering

BLOCK, HEADS, KV, SIZE, CACHE = 32, 3, 1, 32, 64
K, WIDE = HEADS * SIZE, 160


def layer(kind, bits, half, rng):
    """What a layer is: its weights, its nodes. Both terms of a sum come in, the sum goes out."""
    shapes = {
        "qkv": [K, SIZE * KV, SIZE * KV],
        "out": [K],
        "gate": [WIDE, WIDE],
        "down": [K],
    }
    constants = {"gamma": rng.uniform(0.5, 1.5, K).astype(np.float32)}
    refs, more = {}, {}
    for name, widths in shapes.items():
        found = made(kind, bits, widths, absent=("bias",), k=WIDE if name == "down" else K)
        refs[name] = []
        for at, parts in enumerate(found):
            if "scales" in parts:
                parts["scales"] /= 30
            for part in PARTS[kind]:
                refs[name].append(f"{name}{at}{part}" if part in parts else "")
                if part in parts:
                    constants[refs[name][-1]] = stored(kind, part, parts[part])
        more[name] = {} if kind in ("Float", "Half") else {"K": WIDE if name == "down" else K}
        if kind == "BlockPanels":
            more[name] |= {"bits": bits, "block_size": BLOCK, **counts(kind, found)}

    def node(op, inputs, outputs, **more):
        return helper.make_node(op, inputs, outputs, domain=DOMAIN, **more)

    heads = {"num_heads": HEADS, "kv_num_heads": KV, "scale": 0.2, "softcap": 0.0, "window": 0}
    heads["rounded"] = 0
    cached = ["past_key", "past_value", "lengths", "cos", "sin"]
    nodes = [
        node(
            f"NormedLinear{kind}x3",
            ["x", "skip", "gamma", "", *refs["qkv"]],
            ["q", "k", "v", "sum", "normed"][: 4 if kind == "Panels" else 5],
            epsilon=1e-5,
            centered=0,
            **more["qkv"],
        ),
        node(
            "RotaryAttentionHalf" if half else "RotaryAttention",
            ["q", "k", "v", *cached],
            ["seen", "present_key", "present_value"],
            **heads,
        ),
        node(f"Linear{kind}", ["seen", *refs["out"]], ["attended"], **more["out"]),
        node(
            f"NormedGated{kind}",
            ["sum", "attended", "gamma", "", *refs["gate"]],
            ["h", "total", "normed_too"][: 2 if kind == "Panels" else 3],
            epsilon=1e-5,
            centered=0,
            gate=1,
            **more["gate"],
        ),
        node(f"Linear{kind}", ["h", *refs["down"]], ["y"], **more["down"]),
    ]
    return constants, nodes


def model(constants, nodes, half, outputs=("y", "total", "present_key", "present_value")):
    value, floats = helper.make_tensor_value_info, TensorProto.FLOAT
    cache = TensorProto.FLOAT16 if half else floats
    inputs = [value(name, floats, ["B", "S", K]) for name in ("x", "skip")]
    inputs += [value(f"past_{name}", cache, ["B", KV, CACHE, SIZE]) for name in ("key", "value")]
    inputs += [value("lengths", TensorProto.INT32, ["B"])]
    inputs += [value(name, floats, ["B", "S", f"{name}s"]) for name in ("cos", "sin")]
    graph = helper.make_graph(
        nodes,
        "layer",
        inputs,
        [value(n, cache if n.startswith("present") else floats, None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, native.INTERFACE)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def chained(proto):
    rewritten = ir.from_proto(proto)
    merge_chains(Lowering(rewritten.graph, {}))
    return ir.to_proto(rewritten)


def feeds(batch, step, half, past=9):
    rng = np.random.default_rng([batch, step])
    angles = rng.standard_normal((batch, step, SIZE // 2))
    found = {name: rng.standard_normal((batch, step, K)) for name in ("x", "skip")}
    found |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    found = {name: array.astype(np.float32) for name, array in found.items()}
    for name in ("past_key", "past_value"):
        cache = rng.standard_normal((batch, KV, CACHE, SIZE))
        found[name] = cache.astype(np.float16 if half else np.float32)
    found["lengths"] = np.full(batch, past + step, np.int32)
    return found


@with_kernels
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lead", [(1, 1), (1, 5), (3, 1), (2, 40), (0, 1)])
@pytest.mark.parametrize(
    ("kind", "bits", "half"),
    [("Panels", 8, False), ("BlockPanels", 4, True), ("Float", 32, True), ("Half", 16, False)],
)
def test_steps_give_what_nodes_give(kind, bits, half, lead, threads):
    alone = model(*layer(kind, bits, half, np.random.default_rng(bits)), half)
    together = chained(alone)
    assert [node.op_type for node in together.graph.node] == ["Chain"]
    given = feeds(*lead, half)
    wanted = opened(alone, threads=threads).run(None, given)
    session = opened(together, threads=threads)
    for _ in range(3):
        for one, other in zip(session.run(None, given), wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.abs(wanted[0]).sum() > 0 or not lead[0]


@with_kernels
@pytest.mark.parametrize(("said", "there"), [(4, 1), (8, 2), (1, 2), (2, 4)])
def test_threads_that_never_come_are_not_waited_for(said, there):
    proto = chained(model(*layer("Panels", 8, False, np.random.default_rng(8)), False))
    given = feeds(1, 40, False)
    wanted = opened(proto, threads=1).run(None, given)
    session = opened(proto, threads=said, there=there)
    for _ in range(20):
        np.testing.assert_allclose(session.run(None, given)[0], wanted[0], rtol=1e-4, atol=1e-4)


@with_kernels
def test_caches_are_extended_in_place():
    proto = chained(model(*layer("Panels", 8, False, np.random.default_rng(8)), False))
    session, given = opened(proto), feeds(1, 1, False)
    wanted = session.run(None, given)
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name in ("y", "total"):
        binding.bind_output(name, "cpu")
    for name in ("key", "value"):
        array = given[f"past_{name}"]
        binding.bind_output(
            f"present_{name}", "cpu", 0, array.dtype, array.shape, array.ctypes.data
        )
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), wanted[0])
    np.testing.assert_array_equal(given["past_key"], wanted[2])
    np.testing.assert_array_equal(given["past_value"], wanted[3])


@with_kernels
@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_step_refuses_is_said_with_its_number(threads):
    proto = chained(model(*layer("Panels", 8, False, np.random.default_rng(8)), False))
    session, given = opened(proto, threads=threads), feeds(1, 1, False)
    wrong = given | {"cos": given["cos"][:, :, :3]}
    for _ in range(2):
        with pytest.raises(state.InvalidArgument, match=r"step 1, RotaryAttention: sin is "):
            session.run(None, wrong)
    session.run(None, given)  # as if nothing had been


@with_kernels
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("LinearPanels", "LinearFuture", "LinearFuture is not a registered function/op"),
        ("RotaryAttention 8", "RotaryAttention 800", "does not understand its plan"),
        ("NormedLinearPanelsx3", "NormedLinearPanelsx3 -1", "does not understand its plan"),
    ],
)
def test_a_plan_of_another_time_is_refused(old, new, message):
    proto = chained(model(*layer("Panels", 8, False, np.random.default_rng(8)), False))
    for attribute in proto.graph.node[0].attribute:
        if attribute.name == "plan":
            words = attribute.s.decode()
            assert f" {old} " in words
            attribute.s = words.replace(f" {old} ", f" {new} ").encode()
    with pytest.raises(state.RuntimeException, match=message):
        opened(proto)


def test_a_chain_says_what_its_steps_are():
    constants, nodes = layer("BlockPanels", 4, True, np.random.default_rng(4))
    [node] = chained(model(constants, nodes, True)).graph.node
    found = steps(node)
    assert [one.op_type for one in found] == [one.op_type for one in nodes]
    for one, other in zip(found, nodes, strict=True):
        assert sorted(map(str, one.attribute)) == sorted(map(str, other.attribute))
        kept = [name for name in other.input if name in (*constants, *feeds(1, 1, True), "")]
        assert [name for name in one.input if not name.startswith("place.")] == kept
