"""The gated delta rule as onnxruntime computes it, against the rule itself in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmc.backends.onnxruntime.delta import CHUNK
from vlmc.backends.onnxruntime.lower import lower_graph

KEY_HEADS, HEADS, KEY, VALUE = 2, 6, 12, 20


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import onnx_ir as ir
    import onnxruntime as ort

    def value(name: str, *shape: Any) -> Any:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))

    inputs = [
        value("query", "B", "S", KEY_HEADS * KEY),
        value("key", "B", "S", KEY_HEADS * KEY),
        value("value", "B", "S", HEADS * VALUE),
        value("decay", "B", "S", HEADS),
        value("share", "B", "S", HEADS),
        value("past", "B", HEADS, KEY, VALUE),
    ]
    outputs = [value("out", "B", "S", HEADS * VALUE), value("present", "B", HEADS, KEY, VALUE)]
    sizes = {"num_heads": HEADS, "key_heads": KEY_HEADS, "key_size": KEY, "value_size": VALUE}
    attributes = ir.convenience.convert_attributes(sizes)
    node = ir.Node("vlmc", "GatedDelta", inputs, attributes, outputs=outputs)
    imports = {"": 23, "vlmc": 1}
    graph = ir.Graph(inputs, outputs, nodes=[node], name="rule", opset_imports=imports)
    model = ir.Model(graph, ir_version=10)
    lower_graph(model, {})
    path: Path = tmp_path_factory.mktemp("delta") / "rule.onnx"
    ir.save(model, path)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def case(step: int, rows: int, *, alike: bool) -> dict[str, np.ndarray]:
    """Tokens and matrices; ``alike``: nearly equal keys that are written whole and forget little.

    The triangle of such keys has powers that grow beyond any float's digits.
    """
    random = np.random.default_rng(step)
    key = random.normal(size=(rows, step, KEY_HEADS * KEY))
    decay, share = -3 * random.random((rows, step, HEADS)), random.random((rows, step, HEADS))
    if alike:
        key = key[:, :1] + 1e-3 * key
        decay, share = decay * 1e-4, 1 - share * 1e-2
    held = {
        "query": random.normal(size=(rows, step, KEY_HEADS * KEY)),
        "key": key,
        "value": random.normal(size=(rows, step, HEADS * VALUE)),
        "decay": decay,
        "share": share,
        "past": random.normal(size=(rows, HEADS, KEY, VALUE)),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in held.items()}


def rule(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the tokens read and the matrices after them, token by token."""
    rows, step, _ = given["query"].shape
    held = {name: array.astype(np.float64) for name, array in given.items()}

    def unit(name: str) -> np.ndarray:
        x = held[name].reshape(rows, step, KEY_HEADS, KEY)
        x = x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)
        return np.repeat(x, HEADS // KEY_HEADS, axis=2)

    query, key = unit("query") * KEY**-0.5, unit("key")
    value = held["value"].reshape(rows, step, HEADS, VALUE)
    matrix, out = held["past"], np.empty((rows, step, HEADS, VALUE))
    for at in range(step):
        matrix = matrix * np.exp(held["decay"][:, at])[..., None, None]
        known = np.einsum("bhk,bhkv->bhv", key[:, at], matrix)
        new = (value[:, at] - known) * held["share"][:, at, :, None]
        matrix = matrix + key[:, at, :, :, None] * new[:, :, None]
        out[:, at] = np.einsum("bhk,bhkv->bhv", query[:, at], matrix)
    return out.reshape(rows, step, HEADS * VALUE), matrix


@pytest.mark.parametrize("alike", [False, True], ids=["apart", "alike"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("step", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_any_number_of_tokens_is_read_and_written_in_place(
    session: Any, step: int, rows: int, alike: bool
) -> None:
    given = case(step, rows, alike=alike)
    wanted, after = rule(given)
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    past = given["past"]
    binding.bind_output("out")
    binding.bind_output("present", "cpu", 0, past.dtype, past.shape, past.ctypes.data)
    session.run_with_iobinding(binding)
    found = binding.get_outputs()[0].numpy()
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(past - after).max() < 1e-5 * np.abs(after).max()


def test_what_is_forgotten_at_once_leaves_no_trace(session: Any) -> None:
    given = case(CHUNK + 3, 1, alike=False)
    given["decay"] = np.full_like(given["decay"], -200.0)
    wanted, after = rule(given)
    found, present = session.run(None, given)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(present, after, atol=1e-5)
