"""Which operators become one chain, and what the graph around it keeps."""

import onnx_ir as ir
import pytest

from tests.backends.kernels import steps
from vlmc.backends.onnxruntime.lower_chains import merge_chains
from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering

K, CAPACITY = 64, 8
FLOAT = ir.TensorType(ir.DataType.FLOAT)


class Graph:
    """A decoder's, made node by node."""

    def __init__(self):
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []

    def value(self, name, *shape):
        self.inputs.append(ir.Value(name=name, type=FLOAT, shape=ir.Shape(shape)))
        return self.inputs[-1]

    def node(self, op, inputs, names, domain="", **attributes):
        made = ir.convenience.convert_attributes(attributes)
        outputs = [ir.Value(name=name) for name in names]
        self.nodes.append(ir.Node(domain, op, inputs, made, outputs=outputs, name=f"n{names[0]}"))
        return outputs[0] if len(names) == 1 else outputs

    def product(self, x, name, n=K):
        w = self.value(f"{name}.w", -(-n // 64), K // 4, 64, 4)
        return self.node("LinearPanels", [x, w, self.value(f"{name}.s", n)], [name], DOMAIN, K=K)

    def attention(self, x, name):
        cache = [self.value(f"{name}.past_{part}", 1, 1, CAPACITY, K) for part in "kv"]
        return self.node(
            "CachedAttention",
            [x, x, x, *cache, self.value(f"{name}.lengths", 1)],
            [name, f"{name}.key", f"{name}.value"],
            DOMAIN,
            num_heads=1,
            kv_num_heads=1,
            scale=1.0,
            softcap=0.0,
            window=0,
        )

    def chained(self, *outputs):
        graph = ir.Graph(self.inputs, outputs, nodes=self.nodes, name="graph")
        names = [value.name for value in outputs]
        merge_chains(Lowering(graph, {}))
        assert [value.name for value in graph.outputs] == names
        known = {value.name for value in graph.inputs}
        for node in graph:
            assert known.issuperset(v.name for v in node.inputs if v is not None)
            known |= {value.name for value in node.outputs}
        return graph


def chains(graph):
    return [[step.op_type for step in made] for _, made in plans(graph)]


def plans(graph):
    found = [node for node in graph if node.op_type == "Chain"]
    return [(node, steps(ir.to_proto(node))) for node in found]


def test_what_others_make_of_a_chain_ends_it():
    """A node between two operators; one that is only beside them, before or behind, does not."""
    made = Graph()
    x = made.value("x", 1, "S", K)
    first = made.product(x, "first")
    beside = made.node("Neg", [made.value("angles", 1, "S", K)], ["beside"])
    seen, key, value = made.attention(made.product(beside, "second"), "seen")
    late = made.node("Neg", [first], ["late"])
    third = made.product(seen, "third")
    last = made.product(made.product(made.node("Abs", [third], ["abs"]), "fourth"), "last")
    graph = made.chained(last, key, value, late)
    first_chain = ["LinearPanels", "LinearPanels", "CachedAttention", "LinearPanels"]
    assert chains(graph) == [first_chain, ["LinearPanels"] * 2]
    assert [node.op_type for node in graph if node.op_type != "Chain"].count("Neg") == 2


def test_a_branch_that_reads_a_chain_ends_it():
    made = Graph()
    before, key, value = made.attention(made.value("x", 1, "S", K), "before")
    inner = ir.Node("", "Neg", [before], name="inner", outputs=[ir.Value(name="inner")])
    graphs = [
        ir.AttrGraph(name, ir.Graph([], inner.outputs, nodes=[inner], name=name))
        for name in ("then_branch",)
    ]
    chosen = ir.Value(name="chosen")
    condition = made.value("condition")
    made.nodes.append(ir.Node("", "If", [condition], graphs, outputs=[chosen], name="chosen"))
    last = made.product(made.product(chosen, "one"), "two")
    assert chains(made.chained(last, key, value)) == [["LinearPanels"] * 2]


def test_places_are_used_again():
    made = Graph()
    x = made.value("x", 1, "S", K)
    seen, key, value = made.attention(x, "seen")
    for at in range(6):
        seen = made.product(seen, f"p{at}")
    [(node, found)] = plans(made.chained(seen, key, value))
    assert len(found) == 7
    _, outputs, places, *widths = (int(word) for word in node.attributes["plan"].value.split()[:5])
    assert (outputs, places, widths) == (3, 2, [K, K])
    for step in found:  # never where it is read
        assert not set(step.input) & {name for name in step.output if name.startswith("place")}


@pytest.mark.parametrize("cached", [True, False])
def test_only_decoders_have_chains(cached):
    made = Graph()
    x = made.value("x", 1, "S", K)
    outputs = made.attention(x, "seen") if cached else [made.node("Neg", [x], ["seen"])]
    last = made.product(made.product(outputs[0], "one"), "two")
    graph = made.chained(last, *outputs[1:])
    assert [node.op_type for node in graph] == (
        ["Chain"] if cached else ["Neg", "LinearPanels", "LinearPanels"]
    )
