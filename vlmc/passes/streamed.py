"""Weights as tensors that stay in the checkpoint: read where an operation needs their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from threading import Barrier
from typing import Any

import numpy as np
import torch

from vlmc.passes import exact_products
from vlmc.passes.checkpoint import ReadAhead, TensorRef, read_stored
from vlmc.passes.parameters import canonical_names, parameter_sources

# Rows of a large matrix are multiplied in pieces of this size, small enough for the allocator to
# hand the same memory out again: fresh pages cost more than the products.
_PIECE_BYTES = 8 << 20
# Of exact products, what tiles make of the factors first is worth as many rows, or as much memory.
_LEAST_ROWS, _MOST_BYTES = 512, 24 << 20
# Pieces from this size on are multiplied by oneDNN where torch has it: on CPUs that MKL does not
# know, that takes half the time. For smaller ones, making its kernels would take longer.
_LARGE_BYTES = 4 << 20
# Pieces of a matrix from this size on are shared among threads.
_SHARED_BYTES = 32 << 20
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
    place: int
    together: bool
    ahead: ReadAhead

    @staticmethod
    def of(
        ref: TensorRef, shape: torch.Size, place: int, together: bool, ahead: ReadAhead
    ) -> StoredTensor:
        """The tensor that a model holds as ``shape``; its last two axes may lie the other way.

        Args:
            ref: Where its values are.
            shape: The model's.
            place: Its number among the model's.
            together: Whether several questions wait for it together, see ``WAIT``.
            ahead: Of the model's tensors.
        """
        # The right shape in four bytes.
        blank = torch.full((), torch.nan).expand(shape)
        made = torch.Tensor._make_subclass(StoredTensor, blank)
        made.ref, made.place, made.together, made.ahead = ref, place, together, ahead
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
                    return _of_one(args[0], row)
            return func(*map(_whole, args), **{key: _whole(x) for key, x in kwargs.items()})


def stream_weights(
    model: Any,
    index: Mapping[str, TensorRef],
    matched: Mapping[str, str],
    together: Collection[str] = (),
) -> None:
    """Makes every parameter of a module a tensor that stays in the checkpoint.

    Args:
        model: The module, built without its weights and tied as the checkpoint says.
        index: The checkpoint's tensors.
        matched: Parameter names to those of ``index``, as ``match_names`` gives them.
        together: Parameters that several questions wait for together, see ``WAIT``.
    """
    names = canonical_names(model)
    sources = parameter_sources(model, index, matched, names.values())
    refs = {key: index[sources[name]] for key, name in names.items()}
    places = {key: place for place, key in enumerate(names)}
    ahead = ReadAhead([refs[key] for key in names])
    made = {
        key: StoredTensor.of(refs[key], shape, places[key], names[key] in together, ahead)
        for key, shape in {id(p): p.shape for p in model.parameters()}.items()
    }
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]


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


# What a thread that shares weights with others waits by: it is given a tensor, and a float
# ``[..., K]`` to multiply with it or the number of a row to be read.
WAIT: ContextVar[Callable[[StoredTensor, torch.Tensor | int], torch.Tensor] | None] = ContextVar(
    "WAIT", default=None
)
# Whether this thread waits for the others with every weight it multiplies with, a tower's too.
WAIT_ALWAYS: ContextVar[bool] = ContextVar("WAIT_ALWAYS", default=False)


def serve(weight: StoredTensor, wanted: Sequence[torch.Tensor | int]) -> list[torch.Tensor]:
    """What was waited for, each piece of the tensor read once; products are made one by one.

    Args:
        weight: The tensor.
        wanted: Floats ``[..., K]`` to multiply with it, or the number of one row, again and again.
    """
    factors = [x for x in wanted if isinstance(x, torch.Tensor)]
    if factors:
        return _products(factors, weight)
    row = int(wanted[0])
    return [weight.read(row, row + 1)[0]] * len(wanted)


def _of_one(weight: StoredTensor, wanted: torch.Tensor | int) -> torch.Tensor:
    """A product or a row; together with others where this thread shares weights."""
    wait = WAIT.get()
    if wait is None or not (weight.together or WAIT_ALWAYS.get()):
        return serve(weight, [wanted])[0]
    return wait(weight, wanted)


def _linear(x: torch.Tensor, weight: StoredTensor, bias: Any = None) -> torch.Tensor:
    out = _of_one(weight, x)
    return out if bias is None else out.add_(_whole(bias))


def _products(factors: Sequence[torch.Tensor], weight: StoredTensor) -> list[torch.Tensor]:
    """Each ``[..., K]`` times the matrix ``[N, K]``; what one becomes depends on it alone."""
    weight.ahead.of(weight.place)
    if exact_products.can_multiply(weight.ref.dtype):
        return _exact(factors, weight)
    rows, columns = weight.shape
    step = max(1, _PIECE_BYTES // (4 * columns))
    # Of a long prompt and a head the result alone is a GB: it is made in place, not joined.
    made = [x.new_empty(*x.shape[:-1], rows) for x in factors]

    def multiply(start: int) -> None:
        end = min(start + step, rows)
        piece = weight.read(start, end)
        for x, out in zip(factors, made, strict=True):
            out[..., start:end] = _product(x, piece)

    starts = range(0, rows, step)
    if 4 * rows * columns < _SHARED_BYTES:
        for start in starts:
            multiply(start)
    else:
        list(workers().map(multiply, starts))
    return made


def _exact(factors: Sequence[torch.Tensor], weight: StoredTensor) -> list[torch.Tensor]:
    """The same of all rows of all factors at once, with the weights as they are stored."""
    rows, columns = weight.shape
    flat = [x.reshape(-1, columns) for x in factors]
    x = (flat[0] if len(flat) == 1 else torch.cat(flat)).contiguous().numpy()
    made = np.empty((len(x), rows), np.float32)
    # The workers' shares are alike where a matrix is no more than a piece for each.
    share = math.ceil(rows / torch.get_num_threads())
    size = max(_PIECE_BYTES, min(2 * columns * _LEAST_ROWS, _MOST_BYTES))
    step = min(size // (2 * columns), share)
    step = max(1, math.ceil(step / exact_products.ROWS)) * exact_products.ROWS

    def multiply(start: int) -> None:
        end = min(start + step, rows)
        exact_products.multiply(x, read_stored(weight.ref, start, end), made[:, start:end])

    list(workers().map(multiply, range(0, rows, step)))
    parts = np.split(made, np.cumsum([len(each) for each in flat])[:-1])
    shapes = [(*x.shape[:-1], rows) for x in factors]
    return [torch.from_numpy(p).view(shape) for p, shape in zip(parts, shapes, strict=True)]


@cache
def workers() -> ThreadPoolExecutor:
    """As many threads as torch has, each to compute alone: one reads while another multiplies."""
    count = torch.get_num_threads()
    ready = Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # makes it this thread's own
        ready.wait()

    pool = ThreadPoolExecutor(count)
    for _ in range(count):
        pool.submit(begin)
    ready.wait()
    torch.set_num_threads(count)  # of the others
    return pool


def _product(x: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    if 4 * piece.numel() < _LARGE_BYTES or not torch._C._has_mkldnn:
        return torch.nn.functional.linear(x, piece)
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, piece, None, "none", [], "")
    return made


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
