"""A traced program as an ONNX graph.

torch.onnx first traces a program a second time, symbolic sizes and all, to decompose operators that
it cannot write and to undo writes in place. That is most of what an export costs, and next to
nothing in transformers' models asks for it. So the few nodes that do are rewritten here, and only a
program in which anything else is left goes the long way.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from vlmc.passes.closed import is_tensor

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import fx
    from torch.export import ExportedProgram

OPSET = 23


def translate(program: ExportedProgram) -> ir.Model:
    """Writes a program, whose nodes it may change, as a graph of torch.onnx's operators.

    Raises:
        Exception: As ``torch.onnx.export``, for an operator that nobody can write.
    """
    from onnxscript import version_converter
    from torch.fx.experimental import _config
    from torch.onnx._internal.exporter import _core, _fx_passes

    registry = _registry()
    as_torch_onnx: Any = _config
    with as_torch_onnx.patch(backed_size_oblivious=True):  # a size may turn out to be 1
        if not rewrite(program):
            program = _fx_passes.decompose_with_registry(program, registry)
        _fx_passes.insert_type_promotion_nodes(program.graph_module)
        _fx_passes.remove_assertion_nodes(program.graph_module)
    model = _core._exported_program_to_onnx_program(program, registry=registry).model
    version_converter.convert_version(model, OPSET, fallback=True)
    return model


@functools.cache
def _registry() -> Any:
    """What torch.onnx can write; to collect it takes longer than a small graph."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry.from_torchlib(opset_version=OPSET)


def rewrite(program: ExportedProgram) -> bool:
    """Replaces some nodes by what they stand for; whether torch.onnx can write each node then."""
    graph = program.graph
    sizes = _Sizes(graph)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _replace(graph, node, sizes)
    outputs = next(iter(reversed(graph.nodes))).args[0]
    for spec, output in zip(program.graph_signature.output_specs, outputs, strict=True):
        spec.arg.name = output.name
    program.graph_module.recompile()
    return all(_known(node) for node in graph.nodes)


def _replace(graph: fx.Graph, node: fx.Node, sizes: _Sizes) -> None:
    import torch
    from torch._ops import OpOverload

    aten = torch.ops.aten
    target: Any = node.target
    source: Any = node.args[0] if node.args else None
    value: Any = node.meta.get("val")
    shaping = (aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.view.default)
    if target == aten._assert_tensor_metadata.default:
        graph.erase_node(node)
    elif target in (aten.__and__.Tensor, aten.__or__.Tensor):
        bitwise = aten.bitwise_or if target == aten.__or__.Tensor else aten.bitwise_and
        node.target = bitwise.Tensor
    elif target == aten.conv2d.padding and "same" not in node.args:
        # "valid", which is no padding, and what it says by default.
        given = tuple(0 if one == "valid" else one for one in node.args)
        node.target, node.args = aten.conv2d.default, given
    elif target in shaping:
        asked: Any = [None] * value.ndim
        if target in (aten.reshape.default, aten.view.default):
            asked = node.args[1]
        pairs = zip(value.shape, asked, strict=True)
        shape = [sizes.of(size) if one in (None, -1) else one for size, one in pairs]
        if shape.count(None) < 2:
            if target != aten.view.default and not source.meta["val"].is_contiguous():
                with graph.inserting_before(node):
                    source = _contiguous(graph, source)
            shape = [-1 if size is None else size for size in shape]
            node.target, node.args = aten.view.default, (source, shape)
    elif isinstance(target, OpOverload) and target._schema.is_mutable:
        _write_elsewhere(node)
    elif getattr(target, "overloadpacket", None) is aten.to:
        copied = True in (*node.args, *node.kwargs.values())
        if source.meta["val"].dtype == value.dtype and not copied:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        else:
            node.target, node.args = aten._to_copy.default, (source,)
            node.kwargs = {"dtype": value.dtype}


def _write_elsewhere(node: fx.Node) -> None:
    """Makes ``x.add_(y)``, where x has no other name, ``x + y`` for all that reads x later."""
    import torch

    source: Any = node.args[0]
    target: Any = node.target
    if target == torch.ops.aten.copy_.default:
        _copy_elsewhere(node)
        return
    packet = getattr(torch.ops.aten, target._schema.name.split("::")[1].removesuffix("_"), None)
    functional = getattr(packet, target._overloadname, None)
    if functional is None or not _is_alone(source, node):
        return
    # What is written keeps its type; a sum may have another.
    dtypes = {one.meta["val"].dtype for one in node.all_input_nodes if is_tensor(one)}
    if torch.Tag.pointwise in functional.tags and len(dtypes) > 1:
        return
    node.target = functional
    source.replace_all_uses_with(node, lambda user: user is not node and user > node)


def _copy_elsewhere(node: fx.Node) -> None:
    """Makes ``x[..., 1:9:3] = y`` a tensor of its own for all that reads x later."""
    import torch

    aten = torch.ops.aten
    part: Any = node.args[0]
    value: Any = node.args[1]
    whole = part.args[0] if part.target == aten.slice.Tensor else None
    if whole is None or list(part.users) != [node] or not _is_alone(whole, node):
        return
    written, given = part.meta["val"], value.meta["val"]
    if written.dtype != given.dtype or written.shape != given.shape:
        return
    node.target, node.args = aten.slice_scatter.default, (whole, value, *part.args[1:])
    node.meta["val"] = whole.meta["val"]
    whole.replace_all_uses_with(node, lambda user: user is not node and user > node)


def _is_alone(node: Any, write: fx.Node) -> bool:
    """Whether a tensor's memory has no other name that is read after a write to it."""
    import torch

    own = (write, write.args[0])  # what is written to may be a part
    if any(user < write and user not in own and not _is_fresh(user) for user in node.users):
        return False
    while not _is_fresh(node):
        if node.op != "call_function" or not node.args or not is_tensor(node.args[0]):
            return False
        base = node.args[0]
        for user in base.users:
            apart = user.target == node.target == torch.ops.aten.select.int
            # Other rows of the same tensor are other memory.
            apart = apart and user.args[1] == node.args[1] and user.args[2] != node.args[2]
            if user is not node and not (apart and min(user.args[2], node.args[2]) >= 0):
                return False
        node = base
    return True


def _is_fresh(node: Any) -> bool:
    """Whether what an operator returns is memory of its own."""
    if node.target is operator.getitem:
        made, place = node.args
        same = [one for one in made.users if one.args[1] == place]
        return same == [node] and _is_fresh(made)
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and all(made.alias_info is None for made in schema.returns)


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A copy whose elements lie in their order; in ONNX, nothing."""
    import torch

    made = graph.call_function(
        torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
    )
    with node.meta["val"].fake_mode:
        made.meta["val"] = node.meta["val"].contiguous()
    return made


class _Sizes:
    """Nodes that give sizes of the inputs, one for each size: made when the first one asks."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._made: dict[Any, fx.Node] = {}

    def of(self, size: Any) -> Any:
        """As an argument of a node; None where no input has such a size."""
        if isinstance(size, int):
            return size
        if size.node.expr not in self._made:
            for node in self._inputs:
                shape = getattr(node.meta["val"], "shape", ())
                for axis, one in enumerate(shape):
                    if not isinstance(one, int) and one.node.expr == size.node.expr:
                        return self._made.setdefault(size.node.expr, self._cut(node, axis))
        return self._made.get(size.node.expr)

    def _cut(self, node: fx.Node, axis: int) -> fx.Node:
        import torch

        target = torch.ops.aten.sym_size.int
        for user in node.users:
            if user.target == target and user.args == (node, axis) and self._is_first(user):
                return user
        with self._graph.inserting_after(self._inputs[-1]):
            made = self._graph.call_function(target, (node, axis))
        made.meta["val"] = node.meta["val"].shape[axis]
        return made

    def _is_first(self, node: fx.Node) -> bool:
        """Whether it stands before all that computes."""
        import torch

        before = node.prev
        while before.op == "call_function" and before.target == torch.ops.aten.sym_size.int:
            before = before.prev
        return before.op == "placeholder"


def _known(node: fx.Node) -> bool:
    """Whether torch.onnx writes a node as it is: no control flow, nothing written in place."""
    from torch._ops import HigherOrderOperator, OpOverload

    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if isinstance(node.target, HigherOrderOperator):
        return False
    if not isinstance(node.target, OpOverload):
        return True  # arithmetic of sizes, and parts of several outputs
    return not node.target._schema.is_mutable and _registry().is_registered(node.target)
