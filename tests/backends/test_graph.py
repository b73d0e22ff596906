"""The walk over ONNX bytes against the onnx package, and on bytes that are no graph."""

import random

import onnx
import pytest
from onnx import TensorProto, helper

from vlmc.backends.onnxruntime.graph import domain_version, external_locations
from vlmc.errors import VlmcError


def stored(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=1, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph(name, nodes=(), tensors=()):
    return helper.make_graph(list(nodes), name, [], [], list(tensors))


def locations(model) -> set[str]:
    return external_locations(memoryview(model.SerializeToString()))


def test_locations_are_found_wherever_a_tensor_can_be():
    sparse = onnx.SparseTensorProto(values=stored("s", "sparse"), indices=stored("i", "indices"))
    inner = graph("inner", tensors=[stored("w", "deep")])
    inner.sparse_initializer.append(sparse)
    then = graph("then", [helper.make_node("If", ["c"], ["y"], then_branch=inner)])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then)
    constant = helper.make_node("Constant", [], ["c"], value=stored("c", "attribute"))
    many = helper.make_node("Many", [], [])
    many.attribute.append(helper.make_attribute("tensors", [stored("t", "list")]))
    many.attribute.append(
        helper.make_attribute("graphs", [graph("g", tensors=[stored("g", "graphs")])])
    )
    many.attribute.append(
        helper.make_attribute("sparse", onnx.SparseTensorProto(values=stored("v", "sv")))
    )
    several = onnx.AttributeProto(name="several", type=onnx.AttributeProto.SPARSE_TENSORS)
    several.sparse_tensors.append(onnx.SparseTensorProto(values=stored("v", "svs")))
    many.attribute.append(several)
    top = graph("top", [node, constant, many], [stored("w", "top"), stored("v", "top")])
    model = helper.make_model(top)
    function = helper.make_function("d", "f", [], [], [constant], [helper.make_opsetid("", 21)])
    function.node[0].attribute[0].t.CopyFrom(stored("f", "function"))
    function.attribute_proto.append(helper.make_attribute("default", stored("f", "default")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph("init", tensors=[stored("t", "training")]))
    training.algorithm.CopyFrom(graph("step", tensors=[stored("t", "algorithm")]))
    names = "sparse indices deep attribute list graphs sv svs top"
    names += " function default training algorithm"
    assert locations(model) == set(names.split())


def test_inline_tensors_have_no_location():
    tensor = helper.make_tensor("x", 1, [3], [1.0, 2.0, 3.0])
    assert locations(helper.make_model(graph("g", tensors=[tensor]))) == set()


def test_a_location_split_over_two_entries_is_still_seen():
    tensor = stored("w", "a")
    tensor.external_data.add(key="location", value="b")
    assert locations(helper.make_model(graph("g", tensors=[tensor]))) == {"a", "b"}


@pytest.mark.parametrize(
    "data", [b"\x80", b"\x3a\x05ab", b"\xff" * 20, b"<!doctype html>", b"\x0b\x0c"]
)
def test_bytes_that_are_no_graph_are_refused(data):
    with pytest.raises(VlmcError, match="damaged"):
        external_locations(memoryview(data))


def wrapped(field: int, inner: bytes) -> bytes:
    size, head = len(inner), bytearray([field << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + inner


def test_nesting_is_bounded():
    data = b""
    for _ in range(40):  # a graph in an attribute of a node of a graph ...
        data = wrapped(1, wrapped(5, wrapped(6, data)))
    with pytest.raises(VlmcError, match="nested too deeply"):
        external_locations(memoryview(wrapped(7, data)))


def test_damaged_bytes_give_an_answer_or_an_error_never_a_crash():
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=graph("t", tensors=[stored("a", "b")]))
    ]
    whole = helper.make_model(graph("g", nodes, [stored("w", "x")])).SerializeToString()
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        data = bytearray(whole[: chance.randrange(len(whole) + 1)])
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            external_locations(memoryview(bytes(data)))
        except VlmcError:
            refused += 1
    assert refused > 500


def test_the_version_of_a_domain_is_read():
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("vlmc.kernels", 300)]
    graph = helper.make_graph([], "g", [], [])
    data = memoryview(helper.make_model(graph, opset_imports=opsets).SerializeToString())
    assert domain_version(data, "vlmc.kernels") == 300
    assert domain_version(data, "") == 21
    assert domain_version(data, "vlmc") is None
