"""Proof that a layer which stands for others reads and gives tensors by its two nodes alone."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from vlmc.passes.unfold import DOMAIN, ENTER, LEAVE

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram


class NotAlikeError(Exception):
    """A layer does what a call of it would not do."""


def prove_closed(program: ExportedProgram) -> None:
    """Looks at every layer that ran, and has sizes of what enters read where it comes from.

    Raises:
        NotAlikeError: A layer reads a tensor from outside, gives one past its last node, or writes
            into one that it did not make.
    """
    from torch.export.graph_signature import InputKind

    same = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    nodes = list(program.graph.nodes)
    marks = [node for node in nodes if _mark(node) in (ENTER, LEAVE)]
    for enter, leave in zip(marks[::2], marks[1::2], strict=True):
        if (_mark(enter), _mark(leave)) != (ENTER, LEAVE):
            raise NotAlikeError("a layer runs inside of another")
        body = nodes[nodes.index(enter) + 1 : nodes.index(leave)]
        _read_sizes_outside(enter, body)
        own = {enter, leave, *body}
        for node in body:
            for read in node.all_input_nodes:
                if is_tensor(read) and read not in own and read.name not in same:
                    raise NotAlikeError(f"a layer reads '{read.name}' from outside")
            if is_tensor(node) and not own.issuperset(node.users):
                raise NotAlikeError(f"'{node.name}' leaves its layer unseen")
        if _mutates(body):
            raise NotAlikeError("a layer writes into a tensor that is not its own")
    program.graph_module.recompile()


def _mark(node: fx.Node) -> str | None:
    """Which of our nodes it is."""
    import torch

    ours = node.target is torch.ops.onnx_symbolic._symbolic_multi_out.default
    return str(node.args[1]) if ours and node.kwargs.get("domain") == DOMAIN else None


def _read_sizes_outside(enter: fx.Node, body: list[fx.Node]) -> None:
    """The tracer knows a size by the tensor it saw it at first, which may be one that entered."""
    import torch

    given: Any = enter.args[0]
    entered: dict[Any, Any] = {
        n: given[n.args[1]] for n in enter.users if n.target is operator.getitem
    }
    for node in body:
        if node.target is torch.ops.aten.sym_size.int:
            tensor, axis = node.args
            node.args = (entered.get(tensor, tensor), axis)


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor, not a size."""
    import torch

    return isinstance(node.meta.get("val"), torch.Tensor)


def _mutates(nodes: list[fx.Node]) -> bool:
    own = set(nodes)
    for node in nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        written = [
            value
            for value, argument in zip(node.args, schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not written or not all(_is_own(value, own) for value in written):
            return True
    return False


def _is_own(value: Any, own: set[fx.Node]) -> bool:
    """Whether a value is a tensor of the layer's that is no view, and that none outside reads."""
    if value not in own or not own.issuperset(value.users):
        return False
    if value.target is operator.getitem:
        return _is_own(value.args[0], own)
    schema = getattr(value.target, "_schema", None)
    return schema is not None and all(out.alias_info is None for out in schema.returns)
