"""A graph while it is rewritten: new nodes, shared values, constants and stored weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmc.backends.spec import Array, StoredWeight

if TYPE_CHECKING:
    import onnx_ir as ir

_LONG_NAME = 256  # letters of a constant's content in its name


class Lowering:
    """One graph being lowered: appends nodes before the one they replace."""

    def __init__(
        self, graph: ir.Graph, weights: Mapping[str, StoredWeight], outer: Lowering | None = None
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.before: ir.Node | None = None
        self.body: list[ir.Node] = []
        self._outer = outer
        self._values: dict[str, ir.Value] = {}
        self._shared: dict[tuple[str, str], Any] = {}
        self._count = 0
        self._taken = {str(value.name) for value in graph.inputs}
        for node in graph if outer is None else ():
            self._taken |= {str(node.name), *(str(value.name) for value in node.outputs)}

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
    ) -> Any:
        """A node before the current one; its output, or the tuple of its outputs."""
        import onnx_ir as ir

        values = [ir.Value(name=self.name(op)) for _ in range(outputs)]
        attrs = [
            ir.AttrTensor(k, v)
            if isinstance(v, ir.TensorProtocol)
            else ir.convenience.convert_attribute(k, v)
            for k, v in (attributes or {}).items()
        ]
        node = ir.Node(domain, op, inputs, attrs, outputs=values, name=self.name(op))
        if self._outer is not None:
            self.body.append(node)
        else:
            assert self.before is not None
            self.graph.insert_before(self.before, node)
        return values[0] if outputs == 1 else tuple(values)

    def choose(
        self,
        condition: ir.Value,
        op: str,
        branches: Mapping[str, tuple[Sequence[ir.Value | None], Mapping[str, Any]]],
        *,
        domain: str,
        like: Sequence[ir.Value],
    ) -> tuple[ir.Value, ...]:
        """An ``If`` before the current node, whose branches are one node each.

        Args:
            condition: bool, one number.
            op: Of both nodes.
            branches: ``then_branch`` and ``else_branch``: a node's inputs and attributes.
            domain: Of both nodes.
            like: Values of the same types as the outputs.
        """
        import onnx_ir as ir

        graphs = []
        for name, (inputs, attributes) in branches.items():
            attrs = ir.convenience.convert_attributes(attributes)
            inner = ir.Node(domain, op, inputs, attrs, num_outputs=len(like), name=self.name(op))
            for value, outer in zip(inner.outputs, like, strict=True):
                value.name, value.type = self.name(name), outer.type
            graph = ir.Graph([], inner.outputs, nodes=[inner], name=self.name(name))
            graphs.append(ir.AttrGraph(name, graph))
        return self.branch(condition, graphs, outputs=len(like))

    def branch(
        self, condition: ir.Value, branches: Sequence[ir.Attr], *, outputs: int
    ) -> tuple[ir.Value, ...]:
        """An ``If`` before the current node, of ``then_branch`` and ``else_branch``."""
        import onnx_ir as ir

        made = [ir.Value(name=self.name("If")) for _ in range(outputs)]
        node = ir.Node("", "If", [condition], branches, outputs=made, name=self.name("If"))
        assert self.before is not None
        self.graph.insert_before(self.before, node)
        return tuple(made)

    def shared(self, kind: str, value: ir.Value, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for each ``value``: it stays before its first use."""
        key = (kind, str(value.name))
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def constant(self, content: Array | np.generic) -> ir.Value:
        """A small initializer; equal ones are one."""
        import onnx_ir as ir

        if self._outer is not None:
            return self._outer.constant(content)
        array = np.asarray(content)
        words = array.tobytes().hex()
        if len(words) > _LONG_NAME:
            words = hashlib.sha256(array.tobytes()).hexdigest()
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{words}"
        if name not in self._values:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            self.graph.initializers[name] = value
            self._values[name] = value
        return self._values[name]

    def part(self, weight: str, suffix: str, *, own: bool = False) -> ir.Value:
        """The initializer of one stored part of a weight; ``own``: one that nobody else reads."""
        import onnx_ir as ir

        if self._outer is not None:
            return self._outer.part(weight, suffix, own=own)
        stored = self.weights[weight].parts[suffix]
        name, copies = stored.name, 0
        while own and name in self._values:
            copies += 1
            name = f"{stored.name}.{copies}"
        if name not in self._values:
            dtype = ir.DataType.from_numpy(np.dtype(stored.dtype))
            tensor = ir.ExternalTensor(
                stored.file,
                stored.offset,
                stored.nbytes,
                dtype,
                shape=ir.Shape(stored.shape),
                name=name,
                base_dir="",
            )
            value = ir.Value(
                name=name,
                shape=ir.Shape(stored.shape),
                type=ir.TensorType(dtype),
                const_value=tensor,
            )
            self.graph.initializers[name] = value
            self._values[name] = value
        return self._values[name]

    def inside(self) -> Lowering:
        """For the body of a loop: its nodes are gathered in ``body``, and read the graph around."""
        return Lowering(self.graph, self.weights, outer=self)

    def name(self, op: str) -> str:
        """A name that no other value or node of the graph has."""
        if self._outer is not None:
            return self._outer.name(op)
        self._count += 1
        while f"{op}_{self._count}" in self._taken:
            self._count += 1
        return f"{op}_{self._count}"


def weight_of(low: Lowering, value: ir.Value | None) -> StoredWeight | None:
    """How a value is stored, where it is a weight."""
    if value is None or value.producer() is not None:
        return None
    return low.weights.get(str(value.name))


def float_weight(low: Lowering, name: str) -> ir.Value:
    """A weight as float32, whatever it is stored as (fp32 or fp16)."""
    import onnx_ir as ir

    value = low.part(name, "")
    if low.weights[name].format == "fp32":
        return value
    return low.shared(
        "float", value, lambda: low.add("Cast", [value], {"to": int(ir.DataType.FLOAT)})
    )


def replace(node: ir.Node, outputs: Iterable[ir.Value]) -> None:
    """Gives a node's uses, and its name where it is the graph's output, to other values."""
    import onnx_ir.convenience as convenience

    graph = node.graph
    assert graph is not None
    new = list(outputs)
    for old, value in zip(node.outputs, new, strict=True):
        value.shape, value.type = old.shape, old.type
        if old.is_graph_output():
            value.name, old.name = old.name, f"{old.name}_lowered"
    convenience.replace_all_uses_with(list(node.outputs), new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def resize_heads(low: Lowering, x: ir.Value | None, heads: int, old: int, new: int) -> ir.Value:
    """[batch, step, heads * old] -> [batch, step, heads * new], zeros added or dropped."""
    assert x is not None
    x = low.add("Reshape", [x, low.constant(np.array([0, 0, heads, old], np.int64))])
    # A negative pad drops what lies behind.
    x = low.add("Pad", [x, low.constant(np.array([0] * 7 + [new - old], np.int64))])
    return low.add("Reshape", [x, low.constant(np.array([0, 0, heads * new], np.int64))])


def only_read_by(value: ir.Value | None, *readers: ir.Node) -> bool:
    """Whether nothing but these nodes reads it."""
    if value is None or value.is_graph_output():
        return False
    return {use.node for use in value.uses()} == set(readers)
