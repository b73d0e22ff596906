"""Weights as tensors that stay in the checkpoint: read where an operation needs their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vlmc.passes.checkpoint import TensorRef, read_stored
from vlmc.passes.parameters import canonical_names, parameter_sources

# Rows of a large matrix are multiplied in pieces of this size, small enough for the allocator to
# hand the same memory out again: fresh pages cost more than the products.
_PIECE_BYTES = 8 << 20
# What is asked of a tensor without its values.
_WITHOUT_VALUES = {
    *("size", "dim", "numel", "nelement", "is_floating_point", "is_complex", "element_size"),
    *(f"{name}.__get__" for name in ("shape", "dtype", "device", "ndim", "layout", "is_meta")),
    *(f"{name}.__get__" for name in ("is_cuda", "is_cpu", "requires_grad", "is_quantized")),
}


class StoredTensor(torch.Tensor):
    """A float32 tensor of a checkpoint's; nothing of it is kept in memory between operations.

    Lookups read the rows looked up and products go through a matrix piece by piece, so the largest
    matrix of a model is never whole in memory. Any other operation reads the tensor whole.
    """

    ref: TensorRef

    @staticmethod
    def of(ref: TensorRef, shape: torch.Size) -> StoredTensor:
        """The tensor that a model holds as ``shape``; its last two axes may lie the other way."""
        # The right shape in four bytes.
        blank = torch.full((), torch.nan).expand(shape)
        made = torch.Tensor._make_subclass(StoredTensor, blank)
        made.ref = ref
        return made

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Its values, or those of some rows."""
        rows = _read(self.ref, start, stop)
        return rows if rows.shape[1:] == self.shape[1:] else rows.transpose(1, 2)  # of experts

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operation that was given such a tensor."""
        kwargs = kwargs or {}
        name = _name(func)
        with torch._C.DisableTorchFunctionSubclass():
            if name in _WITHOUT_VALUES:
                return func(*args, **kwargs)
            streamed = _STREAMED.get(name)
            if streamed and len(args) > 1 and isinstance(args[1], StoredTensor):
                return streamed(*args, **kwargs)
            if name == "__getitem__" and isinstance(args[0], StoredTensor):
                row = _row(args[1])
                if row is not None:
                    return args[0].read(row, row + 1)[0]
            return func(*map(_whole, args), **{key: _whole(x) for key, x in kwargs.items()})


def stream_weights(model: Any, index: Mapping[str, TensorRef], matched: Mapping[str, str]) -> None:
    """Makes every parameter of a module a tensor that stays in the checkpoint.

    Args:
        model: The module, built without its weights and tied as the checkpoint says.
        index: The checkpoint's tensors.
        matched: Parameter names to those of ``index``, as ``match_names`` gives them.
    """
    names = canonical_names(model)
    sources = parameter_sources(model, index, matched, names.values())
    refs = {key: index[sources[name]] for key, name in names.items()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                stored = StoredTensor.of(refs[id(parameter)], parameter.shape)
                module._parameters[name] = stored


def _name(func: Callable[..., Any]) -> str:
    """``size`` or ``linear``; ``shape.__get__`` for a property."""
    owner = getattr(func, "__self__", None)
    own: str = getattr(func, "__name__", "")
    return f"{owner.__name__}.{own}" if own == "__get__" and owner is not None else own


def _row(at: Any) -> int | None:
    """The row, counted from the first, whose index this is, as ``[row]`` or ``[row, :]``."""
    if type(at) is tuple and len(at) == 2 and at[1] == slice(None):
        at = at[0]
    if isinstance(at, torch.Tensor):
        at = int(at) if at.dim() == 0 and at.dtype == torch.int64 else None
    return at if type(at) is int and at >= 0 else None


def _whole(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return value.read()
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return value


def _read(ref: TensorRef, start: int, stop: int | None) -> torch.Tensor:
    rows = read_stored(ref, start, ref.shape[0] if stop is None and ref.shape else stop or 1)
    rows = rows if ref.shape else rows.reshape(())
    if ref.dtype == "BF16":  # torch widens them on all cores
        return torch.from_numpy(rows).view(torch.bfloat16).float()
    return torch.from_numpy(rows).float()


def _linear(x: torch.Tensor, weight: StoredTensor, bias: Any = None) -> torch.Tensor:
    rows, columns = weight.shape
    step = max(1, _PIECE_BYTES // (4 * columns))
    # Of a long prompt and a head the result alone is a GB: it is made in place, not joined.
    out = x.new_empty(*x.shape[:-1], rows)
    for at in range(0, rows, step):
        end = min(at + step, rows)
        out[..., at:end] = torch.nn.functional.linear(x, weight.read(at, end))
    return out if bias is None else out.add_(_whole(bias))


def _embedding(ids: torch.Tensor, weight: StoredTensor, *_: Any, **__: Any) -> torch.Tensor:
    # What else it is given (padding and norms) matters to training alone.
    wanted, places = torch.unique(ids, return_inverse=True)
    rows = torch.cat([weight.read(row, row + 1) for row in wanted.tolist()])
    return torch.nn.functional.embedding(places, rows)


def _matmul(x: torch.Tensor, weight: StoredTensor) -> torch.Tensor:
    if weight.dim() != 2:
        return torch.matmul(x, weight.read())
    rows, columns = weight.shape  # Ovis 2's table of visual words
    step = max(1, _PIECE_BYTES // (4 * columns))
    total = torch.zeros(*x.shape[:-1], columns)
    for at in range(0, rows, step):
        end = min(at + step, rows)
        total += x[..., at:end] @ weight.read(at, end)
    return total


_STREAMED: dict[str, Callable[..., torch.Tensor]] = {
    "linear": _linear,
    "embedding": _embedding,
    "matmul": _matmul,
}
