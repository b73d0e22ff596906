"""What a lowering adds to a graph."""

import onnx_ir as ir

from vlmc.backends.onnxruntime.rewrite import Lowering


def test_names_are_none_that_the_graph_has() -> None:
    x = ir.Value(name="Abs_1")
    nodes = [ir.Node("", "Neg", [x], outputs=[ir.Value(name="Abs_2")], name="Abs_4")]
    graph = ir.Graph([x], nodes[0].outputs, nodes=nodes, opset_imports={"": 20})
    low = Lowering(graph, {})
    low.before = nodes[0]
    low.add("Abs", [low.add("Abs", [x])])
    inner = low.inside()
    made = [*graph, inner.add("Abs", [x]).producer()]
    names = [node.name for node in made] + [value.name for node in made for value in node.outputs]
    assert len({*names, x.name}) == len(names) + 1
