"""Operators of our kernels that follow each other in a decoder -> one node that runs them all.

In a decode step a node costs microseconds before it does anything: onnxruntime looks up its
tensors, allocates its outputs, wakes threads and waits for them. A ``Chain`` does so once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vlmc.backends.onnxruntime.native import DOMAIN
from vlmc.backends.onnxruntime.rewrite import Lowering, replace

if TYPE_CHECKING:
    import onnx_ir as ir

CHAIN = "Chain"
_CACHED = {
    f"{op}Attention{kind}" for op in ("Cached", "Rotary") for kind in ("", "Half")
}  # what a decoder is known by
# Of an operator's name: the inputs that a product has, and which of them has a number a channel.
_PRODUCTS = {"Panels": (3, 1), "BlockPanels": (4, None), "Float": (2, 0), "Half": (2, 0)}
_CHANNELS = ("N", "N2", "N3")  # attributes of operators none of whose inputs has
_FORMS = {"Linear{}": 1, "Linear{}x2": 2, "Linear{}x3": 3, "Gated{}": 1, "Activated{}": 1}
_LEAST = 2  # operators of a chain
_OF_NORM = 4  # inputs of a normed product that come in the place of x


def merge_chains(low: Lowering) -> None:
    """Merges runs of operators in a decoder's graph, in place; all else is lowered already."""
    nodes = [node for node in low.graph if node.domain == DOMAIN]
    if any(node.op_type in _CACHED for node in nodes):
        for run in list(_runs(low.graph)):
            if len(run) >= _LEAST:
                _merge(low, run)
        low.graph.sort()


def _runs(graph: Iterable[ir.Node]) -> Iterable[list[ir.Node]]:
    """Operators in their order, those of a run without one between them that is another's."""
    run: list[ir.Node] = []
    behind: set[ir.Value] = set()  # what is made of a run's values by other nodes
    for node in graph:
        inputs = set(_read(node))
        if _widths(node) is not None:
            if inputs & behind:
                yield run
                run, behind = [], set()
            run.append(node)
        elif inputs & behind or any(value.producer() in run for value in inputs):
            behind.update(node.outputs)
    yield run


def _read(node: ir.Node) -> Iterable[ir.Value]:
    """What a node reads, its branches and bodies too."""
    import onnx_ir as ir

    yield from (value for value in node.inputs if value is not None)
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            for inner in attr.as_graph():
                yield from _read(inner)


def _widths(node: ir.Node) -> list[int] | None:
    """Numbers that each output has for a row of the node's x, 0 for caches.

    None where a chain does not know the operator.
    """
    if node.domain != DOMAIN:
        return None
    if node.op_type in _CACHED:
        cache = _shape(node.inputs[3])
        return [int(node.attributes["num_heads"].value) * cache[3], 0, 0]
    plain = node.op_type.removeprefix("Normed")
    given = {key: attr.value for key, attr in node.attributes.items()}
    first = 1 if plain == node.op_type else _OF_NORM
    for kind, (step, of) in _PRODUCTS.items():
        for form, products in _FORMS.items():
            if plain == form.format(kind):
                if of is None:
                    widths = [int(given[name]) for name in _CHANNELS[:products]]
                else:
                    each = range(first + of, first + step * products, step)
                    widths = [_shape(node.inputs[at])[0] for at in each]
                read = int(given["K"]) if "K" in given else _shape(node.inputs[first])[1]
                return widths + [read] * (len(node.outputs) - products)
    return None


def _shape(value: ir.Value | None) -> list[int]:
    assert value is not None
    assert value.shape is not None
    return [size if isinstance(size, int) else 0 for size in value.shape]


def _merge(low: Lowering, run: list[ir.Node]) -> None:
    import onnx_ir as ir

    inside = {value: at for at, node in enumerate(run) for value in node.outputs}
    last = {v: i for i, node in enumerate(run) for v in node.inputs if v in inside}
    given: list[ir.Value] = []
    for node in run:
        given += [v for v in node.inputs if v is not None and v not in inside and v not in given]
    kept = [
        v for v in inside if v.is_graph_output() or any(use.node not in run for use in v.uses())
    ]
    numbers = {value: at for at, value in enumerate([*given, *kept])}
    places: list[int] = []  # numbers for a row
    free: list[int] = []
    plan: list[object] = []
    attributes: dict[str, Any] = {}
    for at, node in enumerate(run):
        widths = _widths(node)
        assert widths is not None
        for value, width in zip(node.outputs, widths, strict=True):
            if value not in numbers:
                place = _place(places, free, width)
                numbers[value] = len(given) + len(kept) + place
        ends = [v for v in {*node.inputs, *node.outputs} if v in inside and v not in kept]
        free += sorted(numbers[v] - len(given) - len(kept) for v in ends if last.get(v, at) == at)
        for values in (node.inputs, node.outputs):
            plan += [] if values is node.outputs else [node.op_type]
            plan += [len(values), *(-1 if v is None else numbers[v] for v in values)]
        attributes |= {f"{at}.{key}": attr.value for key, attr in node.attributes.items()}
    head = [len(given), len(kept), len(places), *places]
    attributes["plan"] = " ".join(map(str, [*head, *plan]))
    low.before = run[0]
    made = low.add(CHAIN, given, attributes, domain=DOMAIN, outputs=len(kept) + 1)
    new = dict(zip(kept, made, strict=False))
    for node in reversed(run):
        replace(node, [new.get(v) or ir.Value(name=low.name(CHAIN)) for v in node.outputs])
    for value in made:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)


def _place(places: list[int], free: list[int], width: int) -> int:
    """A free place of that width, or a new one."""
    for at in free:
        if places[at] == width:
            free.remove(at)
            return at
    places.append(width)
    return len(places) - 1
